"""Configs of MMEngine's pure Python kind: classes as types, ``read_base()``; what is written of them loads anywhere."""

import re

import mmdet.registry
import pytest
from mmengine.config import Config

from mmdeform_upgrade.config import config_text, upgrade_changes, upgrade_config
from mmdeform_upgrade.mm.preflight import build_network
from mmdeform_upgrade.release.rewrite import with_layers
from mmdeform_upgrade.schedule import shorten_schedule

from .conftest import run_tool

REGISTRIES = [registry for name, registry in vars(mmdet.registry).items() if name.isupper() and 'MMENGINE' not in name]


def _class(name):
    found = [registry.get(name) for registry in REGISTRIES]
    return next((kind for kind in found if isinstance(kind, type)), None)


@pytest.fixture(scope='module')
def pure(tiny_config):
    """The tiny detector's config with every type imported, its model in a file of its own."""
    from mmdet.utils import register_all_modules

    register_all_modules()
    cfg = Config.fromfile(tiny_config)
    model = Config(dict(model=cfg.pop('model'))).pretty_text
    for name, text in (('pure_model', model), ('pure', cfg.pretty_text)):
        types = {kind: found for kind in re.findall(r"type='(\w+)'", text) if (found := _class(kind))}
        imports = ''.join(f'from {kind.__module__} import {kind.__name__}\n' for kind in {*types.values()})
        base = 'from mmengine.config import read_base\nwith read_base():\n    from .pure_model import *\n'
        body = re.sub(
            rf"type='({'|'.join(types)})'", lambda match, types=types: f'type={types[match[1]].__name__}', text
        )
        path = tiny_config.with_name(f'{name}.py')
        path.write_text((base if name == 'pure' else '') + imports + body)
    assert Config._is_lazy_import(str(path))
    return path


def test_an_upgrade_is_written_trained_tested_and_reverted(pure, tiny_baseline, tmp_path):
    up, control = tmp_path / 'up.py', tmp_path / 'control.py'
    run_tool('upgrade.py', pure, tiny_baseline, '--out', up, '--control', control, '--max-iters', 2)
    assert Config.fromfile(control).train_cfg == Config.fromfile(up).train_cfg
    run_tool('train.py', up, '--work-dir', tmp_path / 'up')
    checkpoint = tmp_path / 'up' / 'iter_2.pth'
    assert 'pascal_voc/mAP' in run_tool('test.py', up, checkpoint, '--work-dir', tmp_path / 'test').stdout
    run_tool('model_converters/revert.py', up, checkpoint, tmp_path / 'plain.pth', '--threshold', 99)


def test_it_says_what_the_text_says(pure, tiny_config, tmp_path):
    networks = []
    for path in (pure, tiny_config):
        cfg = Config.fromfile(path)
        settings = dict(load_from='x.pth', targets='last:2', lr_mult=0.5)
        out = tmp_path / f'{path.stem}_up.py'
        changes = upgrade_changes(cfg, **settings)
        out.write_text(config_text(str(path), str(out), upgrade_config(cfg, **settings), changes))
        written = Config.fromfile(out)
        assert written.optim_wrapper.optimizer.lr == 0.5 * Config.fromfile(tiny_config).optim_wrapper.optimizer.lr
        networks.append(str(build_network(written)))
        assert with_layers(written, {}).model.backbone.get('targets') is None
    assert networks[0] == networks[1]


@pytest.mark.parametrize(
    'name',
    [
        'mmdet/configs/retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmdet/configs/rtmdet/rtmdet_s_8xb32_300e_coco.py',
        'mmdet/configs/faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py',
        'mmdet/configs/detr/detr_r50_8xb2_150e_coco.py',
        'mmseg/configs/deeplabv3/deeplabv3_r50_d8_4xb2_40k_cityscapes_512x1024.py',
    ],
)
def test_the_frameworks_own_are_upgraded_where_they_are_installed(name, tmp_path):
    from importlib.util import find_spec
    from pathlib import Path

    path = Path(find_spec(name.split('/')[0]).origin).parents[1] / name
    if not path.exists():
        pytest.skip(f'{name} is not part of this distribution')
    cfg = Config.fromfile(path)
    assert shorten_schedule(cfg).train_cfg
    out = tmp_path / 'up.py'
    changes = upgrade_changes(cfg, load_from='x.pth')
    out.write_text(config_text(str(path), str(out), upgrade_config(cfg, load_from='x.pth'), changes))
    assert build_network(Config.fromfile(out)).backbone.layer4[-1].conv2.conv_offset


def test_a_class_behind_a_module_that_a_function_hides_is_named_so_that_it_is_found():
    from mmdet.models.losses import L1Loss
    from mmengine.utils import get_object_from_string

    from mmdeform_upgrade.config import _named

    named = _named(dict(loss=dict(type=L1Loss)))['loss']['type']
    assert get_object_from_string(named) is L1Loss
    assert get_object_from_string(f'{L1Loss.__module__}.L1Loss') is not L1Loss, 'no longer hidden'


def test_a_config_without_a_scope_builds_what_its_registries_hold():
    from mmdet.models.task_modules import MaxIoUAssigner
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from torch import nn

    from mmdeform_upgrade.mm.preflight import build_network

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.assigner = MaxIoUAssigner(0.5, 0.5)

    DefaultScope._instance_dict.clear()
    assert build_network(Config(dict(default_scope=None, model=dict(type=Holder)))).assigner is not None
