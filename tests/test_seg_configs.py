"""MMSegmentation's own configs: schedules by iterations, named by package, dilated stages upgraded."""

import copy
from pathlib import Path

import mmseg
import pytest
import torch
from mmengine.config import Config

from mmdeform_upgrade import shorten_schedule, upgrade_
from mmdeform_upgrade.config import describe_schedule, find_config, read_config
from mmdeform_upgrade.errors import ConfigError

from .conftest import build, relative_error, run_tool

CONFIGS = Path(mmseg.__file__).parent / '.mim' / 'configs'
VOC_R101 = 'mmseg::deeplabv3/deeplabv3_r101-d8_4xb4-20k_voc12aug-512x512.py'


# Stock schedules, a quarter of each.
@pytest.mark.parametrize(
    'name,iterations,interval',
    [
        ('deeplabv3/deeplabv3_r101-d8_4xb4-20k_voc12aug-512x512.py', 5000, 500),
        ('deeplabv3/deeplabv3_r101-d8_4xb4-40k_voc12aug-512x512.py', 10000, 1000),
        ('pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024.py', 20000, 2000),
        ('fcn/fcn_r50-d8_4xb4-160k_ade20k-512x512.py', 40000, 4000),
        ('deeplabv3/deeplabv3_r101-d8_4xb4-320k_coco-stuff164k-512x512.py', 80000, 8000),
    ],
)
def test_stock_schedules_shrink_by_iterations(name, iterations, interval):
    cfg = Config.fromfile(find_config(f'mmseg::{name}'))
    short = shorten_schedule(cfg)
    assert short.train_cfg == dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=interval)
    (poly,) = short.param_scheduler
    assert (poly.type, poly.begin, poly.end, poly.by_epoch) == ('PolyLR', 0, iterations, False)
    assert (poly.power, poly.eta_min) == (cfg.param_scheduler[0].power, cfg.param_scheduler[0].eta_min)
    assert short.default_hooks.checkpoint == dict(type='CheckpointHook', by_epoch=False, interval=interval)
    assert short.default_hooks.logger == cfg.default_hooks.logger
    assert f'{iterations} iterations; ' in describe_schedule(short)
    assert f'validation every {interval}' in describe_schedule(short)


def test_warm_up_and_late_validation_shrink_with_them():
    warm, poly = shorten_schedule(
        Config.fromfile(CONFIGS / 'vit/vit_deit-b16_upernet_8xb2-80k_ade20k-512x512.py')
    ).param_scheduler
    assert (warm.type, warm.begin, warm.end, poly.begin, poly.end) == ('LinearLR', 0, 375, 375, 20000)
    late = shorten_schedule(Config.fromfile(CONFIGS / 'san/san-vit-b16_coco-stuff164k-640x640.py'))
    assert (late.train_cfg.max_iters, late.train_cfg.val_begin, late.train_cfg.val_interval) == (15000, 13750, 125)
    assert late.default_hooks.checkpoint.interval == 2500


def test_a_stock_config_is_named_by_its_package(tmp_path):
    cfg = Config.fromfile(find_config(VOC_R101))
    cfg.model.pretrained = None
    with torch.device('meta'):
        state = build(cfg).state_dict()
    torch.save(
        {key: torch.zeros(value.shape, dtype=torch.float16) for key, value in state.items()}, tmp_path / 'r101.pth'
    )
    temporary = tmp_path / 'temporary'
    temporary.mkdir()
    plan = run_tool('upgrade.py', VOC_R101, 'r101.pth', cwd=tmp_path, env={'TMPDIR': str(temporary)}).stdout
    assert not list(temporary.glob('*.py'))
    for text in (
        'layer4.0.conv2',
        'layer4.1.conv2',
        'layer4.2.conv2',
        'dilation 4',
        '682 tensors fit',
        '2 359 296 -> 2 442 240',
        '20000 iterations; SGD lr 0.01',
        '5000 iterations; SGD lr 0.01; PolyLR (iterations: power 0.9, eta_min 0.0001, begin 0, end 5000)',
    ):
        assert text in plan, text
    upgraded = Config.fromfile(tmp_path / (Path(VOC_R101).stem + '-upgrade.py'))
    assert upgraded.model.backbone.base_type == 'ResNetV1c' and upgraded.model.pretrained is None
    assert upgraded.train_dataloader.sampler.type == 'InfiniteSampler' and upgraded.train_cfg.max_iters == 5000


@pytest.mark.parametrize(
    'name,message',
    [
        ('mmseg::deeplabv3/none.py', "there is no config file '.*deeplabv3/none.py'"),
        ('nopackage::a/b.py', "the package 'nopackage' is not installed"),
        ('::a.py', "the package '' is not installed"),
    ],
)
def test_a_wrong_package_config_is_named(name, message):
    with pytest.raises(ConfigError, match=message):
        find_config(name)


def test_a_config_that_inherits_mmsegs_is_read_or_told_how(tmp_path):
    inherits = tmp_path / 'own.py'
    inherits.write_text("_base_ = 'mmseg::_base_/models/fcn_r50-d8.py'\n")
    try:
        found = read_config(str(inherits))
    except ConfigError as error:  # onedl-mmsegmentation, which MMEngine looks for as mmsegmentation
        line = str(error).partition('write ')[2].rstrip(')')
        inherits.write_text(line.replace('NAME', '_base_/models/fcn_r50-d8'))
        found = read_config(str(inherits))
    assert found.model.decode_head.type == 'FCNHead'


@pytest.mark.parametrize(
    'name,part,dilations',
    [
        ('deeplabv3/deeplabv3_r101-d16-mg124_4xb2-40k_cityscapes-512x1024.py', 'backbone', [1, 2, 4]),  # multi_grid
        ('deeplabv3/deeplabv3_r50-d8_4xb4-20k_voc12aug-512x512.py', 'backbone', [2, 4, 4]),  # contract_dilation
        ('deeplabv3/deeplabv3_r50-d8_4xb4-20k_voc12aug-512x512.py', 'decode_head', [24, 36, 1]),
        ('upernet/upernet_r50_4xb4-20k_voc12aug-512x512.py', 'auxiliary_head', [1]),
    ],
)
def test_dilated_stages_and_heads_upgrade_to_the_same_outputs(name, part, dilations):
    text = Config.fromfile(CONFIGS / name).pretty_text.replace("'SyncBN'", "'BN'")
    cfg = Config.fromstring(text, '.py')
    cfg.model.update(pretrained=None)
    cfg.model.backbone.update(depth=50, base_channels=8, stem_channels=8)
    for head, channels in ((cfg.model.decode_head, 256), (cfg.model.auxiliary_head, 128)):
        head.update(channels=8, in_channels=[32, 64, 128, 256] if isinstance(head.in_channels, list) else channels)
    model = build(cfg).double().eval()
    upgraded = copy.deepcopy(model)
    report = upgrade_(upgraded.get_submodule(part), f'last:{len(dilations)}')
    assert [layer.dilation[0] for layer in report.layers] == dilations
    x = torch.randn(1, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        for head in ('decode_head', 'auxiliary_head'):
            outs = [getattr(network, head)(network.extract_feat(x)) for network in (model, upgraded)]
            assert relative_error(outs[1], outs[0]) < 1e-10
