"""Short runs in this process: the tiny detector, and a tiny segmentor whose loss is a plain mean over its pictures."""

import copy
import itertools

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, RUNNERS, DefaultScope

from mmdeform_upgrade.layers import upgraded_layers

from ..faults.tiny import save_tiny_baseline, tiny_config

_number = itertools.count()


@HOOKS.register_module()
class Record(Hook):
    """Keeps each step's loss and, of the first step, every gradient."""

    def __init__(self):
        self.losses, self.grads = [], {}

    def before_train(self, runner):
        runner.optim_wrapper.optimizer.register_step_pre_hook(lambda *_: self._keep_gradients(runner.model))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())

    def _keep_gradients(self, model):
        if not self.grads:
            self.grads = {
                name: parameter.grad.clone()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }


@HOOKS.register_module()
class Spoil(Hook):
    """Sets one layer's offset biases (or another parameter) before a step."""

    def __init__(self, layer, value, iteration=1, parameter='conv_offset.bias'):
        self.layer, self.value, self.iteration, self.parameter = layer, value, iteration, parameter

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            layer = upgraded_layers(runner.model)[self.layer]
            layer.get_parameter(self.parameter).data.fill_(self.value)


@pytest.fixture(autouse=True, scope='module')
def _plain_config_texts():
    """Configs are written without yapf's layout, which takes most of a short run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **kwargs: (text, True))
        yield


def build_runner(cfg, hooks=(), **changes):
    """A runner for ``cfg`` with ``changes`` (dotted keys as in --cfg-options) and more custom hooks."""
    DefaultScope._instance_dict.clear()
    torch.manual_seed(0)
    cfg = copy.deepcopy(cfg)
    cfg.merge_from_dict(changes)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), *hooks]
    number = next(_number)
    cfg.experiment_name, cfg.work_dir = f'short{number}', f'{cfg.work_dir}{number}'
    return (RUNNERS.get(cfg.get('runner_type', 'Runner'))).from_cfg(cfg)


def train(cfg, hooks=(), **changes):
    """Run ``cfg``; returns the runner, whose ``record`` is the :class:`Record` of its steps."""
    runner = build_runner(cfg, [*hooks, dict(type='Record')], **changes)
    runner.train()
    runner.record = next(hook for hook in runner.hooks if isinstance(hook, Record))
    return runner


def offsets(state_dict):
    """The offset branches' tensors."""
    found = {name: value for name, value in state_dict.items() if 'conv_offset' in name}
    assert found
    return found


@pytest.fixture
def short_cfg(tiny_upgrade_cfg):
    """One epoch of two steps of the upgraded detector, by plain SGD, without validation."""
    cfg = tiny_upgrade_cfg
    cfg.train_dataloader.dataset.indices = 8
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.default_hooks.checkpoint.update(save_best=None)
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
    cfg.param_scheduler = None
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
    cfg.log_level = 'WARNING'
    cfg.custom_hooks = [dict(type='DeformUpgradeHook'), dict(type='RunGuardHook')]
    return cfg


SEGMENTOR = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(96, 96), mean=[114.0] * 3, std=[58.0] * 3),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=8,
        style='pytorch',
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        out_indices=(0, 1),
        zero_init_residual=False,
    ),
    decode_head=dict(
        type='FCNHead',
        in_channels=16,
        in_index=1,
        channels=8,
        num_convs=1,
        concat_input=False,
        num_classes=8,
        dropout_ratio=0,
    ),
    test_cfg=dict(mode='whole'),
)


def _segmentor(shapes):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(shapes / 'VOC2007'),
        img_suffix='.jpg',
        seg_map_suffix='.png',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        indices=8,
        ann_file='ImageSets/Segmentation/train.txt',
        metainfo=dict(classes=tuple('abcdefgh')),
        pipeline=pipeline,
    )
    return Config(
        dict(
            default_scope='mmseg',
            model=SEGMENTOR,
            log_level='WARNING',
            randomness=dict(seed=0),
            train_dataloader=dict(
                batch_size=2, num_workers=0, dataset=dataset, sampler=dict(type='DefaultSampler', shuffle=False)
            ),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)),
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1),
        )
    )


@pytest.fixture(scope='package')
def segmentor_files(shapes, tmp_path_factory):
    """Paths of the tiny segmentor's upgraded config and of the checkpoint that it starts from."""
    from mmseg.registry import MODELS

    folder = tmp_path_factory.mktemp('segmentor')
    DefaultScope._instance_dict.clear()
    torch.manual_seed(0)
    with MODELS.switch_scope_and_registry('mmseg') as registry:
        network = registry.build(SEGMENTOR)
    network.init_weights()
    torch.save({'meta': {}, 'state_dict': network.state_dict()}, folder / 'baseline.pth')
    cfg = _segmentor(shapes)
    cfg.model.backbone.update(type='DeformUpgrade', base_type='ResNet', targets='last:3')
    cfg.update(
        load_from=str(folder / 'baseline.pth'),
        custom_hooks=[dict(type='DeformUpgradeHook'), dict(type='RunGuardHook')],
        custom_imports=dict(imports=['mmdeform_upgrade'], allow_failed_imports=False),
    )
    cfg.dump(folder / 'segmentor.py')
    return folder / 'segmentor.py', folder / 'baseline.pth'


@pytest.fixture
def segmentor_cfg(segmentor_files, tmp_path):
    """The upgraded segmentor: four steps of two pictures."""
    cfg = Config.fromfile(segmentor_files[0])
    cfg.work_dir = str(tmp_path / 'seg')
    return cfg


@pytest.fixture(scope='module')
def baseline(tmp_path_factory):
    return save_tiny_baseline(tmp_path_factory.mktemp('tiny') / 'baseline.pth')


@pytest.fixture
def tiny(baseline, tmp_path):
    """The upgrade's config: three epochs, all checkpoints kept."""
    return tiny_config(
        tmp_path / 'work', baseline, **{'train_cfg.max_epochs': 3, 'default_hooks.checkpoint.max_keep_ckpts': -1}
    )
