"""Configs of MMEngine's pure Python kind: classes as types, ``read_base()``; what is written of them loads anywhere."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import DefaultScope

from mmdeform_upgrade.analysis.look import look
from mmdeform_upgrade.config import read_config, shorten_schedule, upgrade_changes, upgrade_config
from mmdeform_upgrade.config.text import config_text, whole_text
from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.mm.command_line import set_amp
from mmdeform_upgrade.mm.preflight import build_network, load_network
from mmdeform_upgrade.release.rewrite import with_layers

from ..conftest import run_tool
from . import pure_python


@pytest.fixture(scope='module', autouse=True)
def no_scope():
    """These configs have no default scope, as a process has none that has not read another config before."""
    before = DefaultScope._instance_dict.copy()
    DefaultScope._instance_dict.clear()
    yield
    DefaultScope._instance_dict.update(before)


@pytest.fixture(scope='module')
def pure(no_scope, shapes, tmp_path_factory):
    """Each kind of baseline: its config, and a checkpoint of its initial weights."""
    files = pure_python.write(tmp_path_factory.mktemp('pure'), shapes)
    for path in files.values():
        assert Config._is_lazy_import(str(path))
        cfg = read_config(str(path))
        cfg.model.pop('pretrained', None)
        torch.save({'meta': {}, 'state_dict': build_network(cfg).state_dict()}, path.with_suffix('.pth'))
    return files


def _built(value):
    """A setting with what its lazy objects stand for."""
    if isinstance(value, dict):
        return {key: _built(item) for key, item in dict.items(value)}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_built, value))
    return value.build() if isinstance(value, (LazyAttr, LazyObject)) else value


def _same(first, second):
    return _built(first._to_lazy_dict()) == _built(second._to_lazy_dict())


def _written(path, out, **settings):
    cfg = Config.fromfile(path)
    settings = dict(load_from='x.pth', **settings)
    full = upgrade_config(cfg, **settings)
    out.write_text(config_text(str(path), str(out), cfg, upgrade_changes(cfg, **settings)))
    return full


@pytest.mark.parametrize('kind', [pytest.param('det', marks=pytest.mark.slow), 'seg', 'mixed'])
def test_the_written_upgrade_and_control_train_test_and_show(pure, kind, shapes, tmp_path):
    config, work = pure[kind], tmp_path / 'work'
    up, control = config.with_name('up.py'), config.with_name('control.py')
    run_tool('upgrade.py', config, config.with_suffix('.pth'), '--out', up, '--control', control, '--max-iters', 2)
    assert Config.fromfile(control).train_cfg == Config.fromfile(up).train_cfg
    assert Config.fromfile(control).randomness == Config.fromfile(up).randomness == dict(seed=0)
    logs = {path: run_tool('train.py', path, '--work-dir', work / path.stem).stdout for path in (up, control)}
    assert 'the upgrade scores, as the baseline does' in logs[up]
    if kind == 'mixed':
        assert all('the function is the one that was named' in log for log in logs.values())
    trained = str(work / 'up' / 'iter_2.pth')
    assert look(load_network(str(up), trained), str(next((shapes / 'VOC2007/JPEGImages').glob('*.jpg')))).records
    if kind == 'det':
        tested = run_tool('test.py', up, work / 'up' / 'iter_2.pth', '--work-dir', tmp_path / 'test').stdout
        assert 'pascal_voc/mAP' in tested


def test_mmengines_runner_alone_takes_a_written_config(pure, tmp_path):
    """In a process that has not imported this package, as with a framework's own tools."""
    import subprocess
    import sys

    out = pure['det'].with_name('alone.py')
    _written(pure['det'], out)
    code = (
        'import sys\nfrom mmengine.config import Config\nfrom mmengine.runner import Runner\n'
        f'cfg = Config.fromfile({str(out)!r})\ncfg.work_dir = {str(tmp_path)!r}\n'
        'print(len([n for n in Runner.from_cfg(cfg).model.state_dict() if "conv_offset" in n]))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ['6'], done.stderr[-2000:]


def test_a_written_config_is_short_and_says_the_same(pure):
    out = pure['det'].with_name('short.py')
    full = _written(pure['det'], out, guard=True, max_iters=5, lr_mult=0.5, targets=['layer4.1.conv2'])
    assert 'from .faster_rcnn_r18_fpn_1x import *' in out.read_text() and len(out.read_text().splitlines()) < 80
    assert _same(Config.fromfile(out), full)
    assert str(build_network(with_layers(Config.fromfile(out), {}))) == str(build_network(Config.fromfile(pure['det'])))


def test_a_setting_that_is_none_is_replaced(pure):
    leaf = pure['seg'].with_name('of_none.py')
    inherits = 'from mmengine.config import read_base\n\nwith read_base():\n    from .fcn_r18_d8 import *\n\n'
    leaf.write_text(inherits + 'custom_imports = None\nlog_processor = None\ndefault_hooks = None\n')
    full = _written(leaf, out := leaf.with_name('of_none_up.py'))
    assert _same(Config.fromfile(out), full) and '_delete_' not in out.read_text()
    assert full.custom_imports.imports == ['mmdeform_upgrade']


@pytest.mark.parametrize('folder', ['sub', 'some-project', '.'])
def test_a_config_is_written_whole_where_no_import_statement_reaches_its_base(pure, tmp_path, folder):
    base, out = pure['mixed'], tmp_path / folder / 'up.py'
    out.parent.mkdir(exist_ok=True)
    full = _written(base, out)
    text = out.read_text()
    assert 'read_base' not in text and 'from torch.nn.functional import relu' in text
    again = Config.fromfile(out)
    assert _same(again, full) and again.custom_hooks[0].limit == float('inf')
    assert build_network(again).backbone.layer4[-1].conv2.conv_offset


def test_a_base_in_another_folder_is_inherited(pure):
    out = pure['seg'].parents[1] / 'elsewhere' / 'up.py'
    out.parent.mkdir()
    full = _written(pure['seg'], out)
    assert 'from ..seg.fcn_r18_d8 import *' in out.read_text() and _same(Config.fromfile(out), full)


def test_classes_of_one_name_and_a_setting_called_like_a_class_stay_apart(tmp_path):
    base = tmp_path / 'base-names.py'
    base.write_text(
        'from mmcv.transforms import LoadAnnotations as First\n'
        'from mmseg.datasets.transforms import LoadAnnotations as Second\n'
        'from torch.nn import init\n'
        'pipeline = [dict(type=First), dict(type=Second), dict(function=init.zeros_)]\n'
        'LoadAnnotations = 3\n'
    )
    cfg = Config.fromfile(base)
    (tmp_path / 'whole.py').write_text(whole_text(cfg))
    assert _same(Config.fromfile(tmp_path / 'whole.py'), cfg)


def test_the_config_of_a_reverted_network_is_written_with_its_classes(pure, tmp_path):
    upgraded = upgrade_config(Config.fromfile(pure['det']), load_from='x.pth')
    (tmp_path / 'plain.py').write_text(whole_text(with_layers(upgraded, {})))
    assert 'mmdeform_upgrade' not in (tmp_path / 'plain.py').read_text()
    plain = Config.fromfile(tmp_path / 'plain.py')
    assert str(build_network(plain)) == str(build_network(Config.fromfile(pure['det'])))


@pytest.mark.parametrize('change', [upgrade_config, shorten_schedule])
def test_what_mmengine_dumps_of_a_changed_config_loads_again(pure, change):
    """A Runner dumps its config into the work directory, and its text into every checkpoint."""
    changed = change(Config.fromfile(pure['seg']), **(dict(load_from='x.pth') if change is upgrade_config else {}))
    again = Config.fromstring(changed.pretty_text, '.py')
    assert again.to_dict() == changed.to_dict() and again.param_scheduler[0].type.endswith('PolyLR')
    assert str(build_network(again)) == str(build_network(changed))


def test_a_baseline_is_read_from_what_mmengine_dumped_of_it(pure, tmp_path):
    dumped, out = tmp_path / 'dumped.py', tmp_path / 'up.py'
    Config.fromfile(pure['det']).dump(dumped)
    cfg = read_config(str(dumped))
    assert str(build_network(cfg)) == str(build_network(Config.fromfile(pure['det'])))
    settings = dict(load_from='x.pth', targets='last:2')
    full = upgrade_config(cfg, **settings)
    out.write_text(config_text(str(dumped), str(out), cfg, upgrade_changes(cfg, **settings)))
    assert str(build_network(read_config(str(out)))) == str(build_network(full))
    assert callable(full.model.test_cfg.rcnn.nms.type) and "type='mmcv.ops.nms'" in full.pretty_text


def test_kinds_that_are_mixed_are_one_clear_error(pure, tmp_path):
    path = tmp_path / 'mixed.py'
    path.write_text(f'_base_ = [{os.path.relpath(pure["det"], tmp_path)!r}]\n')
    with pytest.raises(ConfigError, match='type in the inheritance chain must match'):
        read_config(str(path))


def test_mixed_precision_knows_the_wrapper_by_its_class(pure, monkeypatch):
    monkeypatch.setattr('mmdeform_upgrade.mm.command_line.get_device', lambda: 'cuda')
    cfg = read_config(str(pure['seg']))
    set_amp(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'


@pytest.mark.parametrize(
    'name',
    [
        'mmdet/configs/retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmdet/configs/rtmdet/rtmdet_s_8xb32_300e_coco.py',
        'mmdet/configs/faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py',
        'mmdet/configs/detr/detr_r50_8xb2_150e_coco.py',
        'mmseg/configs/deeplabv3plus/deeplabv3plus_r50_d8_4xb4_80k_loveda_512x512.py',
    ],
)
def test_the_frameworks_own_are_upgraded_where_they_are_installed(name, tmp_path):
    path = Path(find_spec(name.split('/')[0]).origin).parents[1] / name
    if not path.exists():
        pytest.skip(f'{name} is not part of this distribution')
    assert shorten_schedule(Config.fromfile(path)).train_cfg
    out = tmp_path / 'up.py'
    _written(path, out)
    assert build_network(Config.fromfile(out)).backbone.layer4[-1].conv2.conv_offset


def test_a_config_without_a_scope_builds_what_its_registries_hold():
    from mmdet.models.task_modules import MaxIoUAssigner
    from torch import nn

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.assigner = MaxIoUAssigner(0.5, 0.5)

    DefaultScope._instance_dict.clear()
    assert build_network(Config(dict(default_scope=None, model=dict(type=Holder)))).assigner is not None
