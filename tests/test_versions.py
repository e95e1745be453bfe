"""Older PyTorch, other framework releases, and only some of the frameworks."""

import os
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config

from mmdeform_upgrade.config import find_config, read_config
from mmdeform_upgrade.errors import ConfigError

from .conftest import MMDET_CONFIGS, ROOT, build, run_tool
from .families.torch_names import names_used

OLDEST = '2.1.0'  # what setup.py and the original OpenMMLab releases ask for
# The package looks before it uses these.
GUARDED = {
    'torch.get_autocast_dtype',
    'torch.backends.cudnn.conv.fp32_precision',
    'torch.compiler.set_stance',
    'torch.export.Dim.DYNAMIC',
}


def _python(code, *paths, **env):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(map(str, (*paths, ROOT))), **env}
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=False, env=env
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()


def test_every_pytorch_name_is_in_the_oldest_release_or_guarded():
    """tests/families/torch_names.py looked them up in that release's sources."""
    known = set((ROOT / f'tests/families/torch-{OLDEST}.txt').read_text().split())
    assert len(known) > 50 and names_used() - known == GUARDED
    assert f'torch>={OLDEST[:3]}' in (ROOT / 'setup.py').read_text()


def test_the_package_works_without_what_newer_pytorch_added():
    """As far as a newer PyTorch can tell: the names are gone when the package is imported and used."""
    lines = _python(
        'import sys, torch, torch.utils.flop_counter\n'
        'from torch._subclasses import FakeTensorMode\n'
        'fake = FakeTensorMode()\n'
        'for owner, names in ((torch.library, ("register_fake", "impl_abstract")),\n'
        '                     (torch.utils.flop_counter, ("register_flop_formula",))):\n'
        '    for name in names:\n'
        '        vars(owner).pop(name, None)\n'
        'from mmdeform_upgrade import ZeroOffsetDCN\n'
        'class Old:\n'  # PyTorch itself needs this one
        '    is_autocast_enabled = staticmethod(lambda: torch.is_autocast_enabled())\n'
        '    def __getattr__(self, name):\n'
        '        if name == "get_autocast_dtype":\n'
        '            raise AttributeError(name)\n'
        '        return getattr(torch, name)\n'
        'import mmdeform_upgrade.ops.autocast\n'
        'sys.modules["mmdeform_upgrade.ops.autocast"].torch = Old()\n'
        'layer = ZeroOffsetDCN(4, 6, 3, padding=1)\n'
        'torch.nn.init.normal_(layer.conv_offset.bias)\n'
        'x = torch.randn(1, 4, 8, 8)\n'
        'layer(x).sum().backward()\n'
        'print(all(p.grad.any() for p in layer.parameters()))\n'
        'with torch.autocast("cpu", torch.bfloat16):\n'
        '    print(layer(x).dtype)\n'
        'with fake:\n'
        '    print(tuple(ZeroOffsetDCN(4, 6, 3)(torch.empty(2, 4, 8, 9)).shape))\n'
    )
    assert lines[-3:] == ['True', 'torch.bfloat16', '(2, 6, 6, 7)']


# A package that is not there: its folder shadows the installed one, and finding it fails as for a missing package.
BLOCKER = """
import importlib.abc, importlib.util, os, sys
names = tuple(os.environ['MISSING'].split())
missing = lambda name: name in names or name.startswith(tuple(f'{n}.' for n in names))
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if missing(name):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if missing(name) else find(name, package)
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture
def blocker(tmp_path):
    """Folder whose sitecustomize hides the packages that the variable MISSING names, from tools, too."""
    folder = tmp_path / 'blocker'
    folder.mkdir()
    (folder / 'sitecustomize.py').write_text(BLOCKER)
    return folder


def _saved(cfg, path):
    torch.save(build(cfg).state_dict(), path)


UPGRADE = (
    'import torch, mmdeform_upgrade\n'
    'from mmengine.config import Config\n'
    "report = mmdeform_upgrade.upgrade_(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), 'last:1')\n"
    "cfg = Config(dict(model=dict(backbone=dict(type='ResNet')), train_cfg=dict(max_iters=80)))\n"
    "cfg = mmdeform_upgrade.upgrade_config(cfg, load_from='x.pth')\n"
    'print(report.names, cfg.model.backbone.type, cfg.train_cfg.max_iters)\n'
    'for name in MISSING.split():\n'
    '    try:\n'
    '        __import__(name)\n'
    '    except ImportError:\n'
    "        print('no', name)\n"
)


# Without MMEngine itself: tests/test_architecture.py.
def test_the_package_imports_and_upgrades_with_mmengine_alone(blocker):
    missing = 'mmdet mmseg mmcv'
    lines = _python(f'MISSING = {missing!r}\n{UPGRADE}', blocker, MISSING=missing)
    assert lines == ["['0'] DeformUpgrade 20", *(f'no {name}' for name in missing.split())]


def _dry_run(blocker, missing, config, cfg, path, **options):
    _saved(cfg, path)
    return run_tool(
        'upgrade.py',
        config,
        path,
        '--dry-run',
        **options,
        env={'MISSING': missing, 'PYTHONPATH': f'{blocker}{os.pathsep}{ROOT}'},
    )


@pytest.mark.slow
def test_detectors_upgrade_without_mmseg(blocker, tmp_path):
    config = MMDET_CONFIGS / 'retinanet/retinanet_r18_fpn_1x_coco.py'
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    plan = _dry_run(blocker, 'mmseg', config, cfg, tmp_path / 'r18.pth').stdout
    assert 'layer4.1.conv2' in plan and '3 epochs; SGD' in plan


@pytest.mark.slow
def test_segmentors_upgrade_without_mmdet_and_with_mmcv_lite(blocker, tmp_path):
    config = 'mmseg::deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py'
    cfg = Config.fromfile(find_config(config))
    cfg.model.pretrained = None
    plan = _dry_run(blocker, 'mmdet mmcv._ext', config, cfg, tmp_path / 'r18.pth').stdout
    assert 'layer4.1.conv2' in plan and '20000 iterations; SGD' in plan


def test_a_framework_that_a_config_needs_is_named(blocker, tmp_path):
    config = MMDET_CONFIGS / 'retinanet/retinanet_r18_fpn_1x_coco.py'
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    result = _dry_run(blocker, 'mmdet', config, cfg, tmp_path / 'r18.pth', check=False)
    assert result.returncode == 2 and 'Traceback' not in result.stderr
    assert "default_scope='mmdet', and the package mmdet is not installed" in result.stderr
    (tmp_path / 'other.py').write_text("_base_ = 'mmpretrain::none/none.py'\n")
    with pytest.raises(ConfigError, match=r'other\.py: .*mmpretrain'):
        read_config(str(tmp_path / 'other.py'))
