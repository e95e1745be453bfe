"""``--train offsets`` through the tools: nothing but the offset branches changes, and the adapter is switched."""

import os
from types import SimpleNamespace

import pytest
import torch
from mmdet.apis import init_detector
from mmengine.config import Config
from mmseg.apis import init_model

from mmdeform_upgrade import disable_adapter, load_adapter
from mmdeform_upgrade.checkpoint import is_offset_key
from mmdeform_upgrade.errors import ConfigError, TargetError
from mmdeform_upgrade.mm.preflight import build_network
from mmdeform_upgrade.release import make_delta

from ..conftest import MMDET_CONFIGS, build, run_tool
from .conftest import _segmentor

SYNC = dict(type='SyncBN', requires_grad=True)


def _ssd(shapes, tiny_config):
    """SGD, in mmdet's detector that has no batch norm but in the backbone."""
    cfg = Config.fromfile(tiny_config)
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.01))
    return cfg


def _rtmdet(shapes, tiny_config):
    """AdamW with rules for norms and biases, synchronised batch norms everywhere, averaged weights and buffers."""
    cfg = Config.fromfile(tiny_config)
    stock = Config.fromfile(MMDET_CONFIGS / 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
    cfg.model = stock.model
    cfg.model.backbone.update(init_cfg=None, widen_factor=0.0625, norm_cfg=SYNC)
    cfg.model.neck.update(in_channels=[16, 32, 64], out_channels=16, norm_cfg=SYNC)
    cfg.model.bbox_head.update(num_classes=6, in_channels=16, feat_channels=16, norm_cfg=SYNC)
    cfg.optim_wrapper = stock.optim_wrapper
    cfg.custom_hooks = [hook for hook in stock.custom_hooks if hook.type == 'EMAHook']
    return cfg


def _fcn(shapes, tiny_config):
    cfg = _segmentor(shapes)
    cfg.model.backbone.norm_cfg = SYNC
    cfg.model.decode_head.update(norm_cfg=SYNC, dropout_ratio=0.1)
    return cfg


BASELINES = {'ssd': (_ssd, init_detector), 'rtmdet': (_rtmdet, init_detector), 'fcn': (_fcn, init_model)}


@pytest.fixture(scope='module', params=[pytest.param('ssd', marks=pytest.mark.slow), 'rtmdet', 'fcn'])
def adapted(request, shapes, tiny_config, tmp_path_factory):
    """A baseline that knows nothing of this package, two epochs of its offsets' training, and the adapter."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    make, init = BASELINES[request.param]
    cfg = make(shapes, tiny_config)
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None, param_scheduler=None, randomness=dict(seed=0))
    cfg.default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2)
    cfg.train_dataloader.dataset.indices = 8
    cfg.dump(folder / 'baseline.py')
    network = build(cfg)
    network.init_weights()
    for module in network.modules():
        if hasattr(module, 'running_var'):
            for scale in (module.running_var, module.weight.data):  # mmdet's last of a block begin at zero
                scale.uniform_(0.5, 1.5)
    torch.save({'meta': {}, 'state_dict': network.state_dict()}, folder / 'baseline.pth')
    paths = SimpleNamespace(
        **{name: folder / f'{name}.{end}' for name, end in (('config', 'py'), ('a', 'safetensors'))}
    )
    run_tool(
        *('upgrade.py', folder / 'baseline.py', folder / 'baseline.pth', '--train', 'offsets', '--epoch-ratio', 1),
        *('--out', paths.config),
    )
    run_tool('train.py', paths.config, '--work-dir', folder / 'work')
    paths.folder, paths.trained, paths.init = folder, folder / 'work' / 'epoch_2.pth', init
    paths.changed, _ = make_delta(*map(str, (folder / 'baseline.pth', paths.trained, paths.a)))
    return paths


def _changed(paths, trained, key='state_dict'):
    """Names of the tensors that the training changed."""
    before = torch.load(paths.folder / 'baseline.pth')['state_dict']
    after = torch.load(trained, weights_only=False)[key]
    after = {name.removeprefix('module.'): value for name, value in after.items() if name != 'steps'}
    assert before.keys() <= after.keys()
    zero = torch.zeros(())
    return {name for name, value in after.items() if not torch.equal(value, before.get(name, zero.expand_as(value)))}


def test_every_other_tensor_is_the_baselines_to_the_bit(adapted):
    changed, checkpoint = _changed(adapted, adapted.trained), torch.load(adapted.trained, weights_only=False)
    assert len(changed) == 6 and all(map(is_offset_key, changed)) and changed == set(adapted.changed)
    assert len(checkpoint['optimizer']['state']) == 6, 'an optimizer has a state for what trains alone'
    if 'rtmdet' in adapted.folder.name:
        assert _changed(adapted, adapted.trained, 'ema_state_dict') == changed


def test_the_adapter_is_small_and_gives_the_trained_network_on_the_baseline(adapted):
    assert os.path.getsize(adapted.a) < os.path.getsize(adapted.folder / 'baseline.pth')
    model = adapted.init(str(adapted.folder / 'baseline.py'), str(adapted.folder / 'baseline.pth'), device='cpu')
    upgraded = adapted.init(str(adapted.config), str(adapted.trained), device='cpu')
    picture = torch.randn(1, 3, 96, 96)

    def outputs(network):
        with torch.no_grad():
            return torch.cat([value.flatten() for value in network.backbone(picture)])

    baseline = outputs(model)
    load_adapter(model, str(adapted.a))
    assert torch.equal(outputs(model), outputs(upgraded)) and not torch.equal(outputs(model), baseline)
    for network in (model, upgraded):
        with disable_adapter(network):
            assert torch.equal(outputs(network), baseline)


@pytest.mark.parametrize('adapted', ['rtmdet'], indirect=True)
def test_a_resumed_training_ends_with_the_same_adapter(adapted):
    work = adapted.folder / 'resumed'
    run_tool('train.py', adapted.config, '--work-dir', work, '--resume', adapted.trained.with_name('epoch_1.pth'))
    whole, resumed = (
        torch.load(path, weights_only=False)['state_dict'] for path in (adapted.trained, work / 'epoch_2.pth')
    )
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    'change,error,match',
    [
        (dict(base_type=None), ConfigError, 'TrainOffsets needs base_type'),
        (dict(base_type='Nothing'), ConfigError, "TrainOffsets: base_type 'Nothing' is not registered"),
        (dict(backbone=dict(type='ResNet', depth=18, _delete_=True)), TargetError, 'it has no ZeroOffsetDCN'),
    ],
)
def test_what_cannot_be_built_is_refused(change, error, match, shapes):
    cfg = _segmentor(shapes)
    cfg.model.backbone.update(type='DeformUpgrade', base_type='ResNet', targets='last:3')
    cfg.merge_from_dict({'model': dict(dict(type='TrainOffsets', base_type='EncoderDecoder'), **change)})
    with pytest.raises(error, match=match):
        build_network(cfg)
