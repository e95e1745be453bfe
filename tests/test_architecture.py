"""How the package hangs together."""

import ast
import subprocess
import sys

from .conftest import ROOT

PACKAGE = ROOT / 'mmdeform_upgrade'
# A module may import those further left; modules of one place do not import each other except as listed.
ORDER = [
    'errors',
    'files',
    'ops',
    'layers',
    'readers',
    'targets',
    'upgrade',
    'importers',
    'checkpoint',
    'offsets',
    'config',
    'analysis',
    'models',
    'mm',
    'release',
    '__init__',
]


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            depth = len(path.relative_to(PACKAGE).parts) - node.level
            base = path.relative_to(PACKAGE).parts[:depth]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ('.'.join((*base, name)).split('.')[0] for name in names)


def test_imports_run_one_way():
    wrong = []
    for path in PACKAGE.rglob('*.py'):
        part = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
        if '.mim' in path.parts or part == '__init__':
            continue
        for name in _imports(path):
            if name not in ('__version__', part) and ORDER.index(name) > ORDER.index(part):
                wrong.append(f'{part} imports {name}')
    assert not wrong


def test_importing_is_light():
    code = (
        'import sys, torch, mmdeform_upgrade\n'
        "print([m for m in ('mmdet', 'mmseg', 'mmcv', 'triton', 'matplotlib') if m in sys.modules])\n"
        'print(torch.cuda.is_initialized())'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    loaded, cuda = out.splitlines()[-2:]
    assert loaded == '[]' and cuda == 'False'


def test_public_names_are_those_that_were_promised():
    import mmdeform_upgrade

    for name in (
        'OffsetOptimizer',
        'deform_conv2d',
        'ZeroOffsetDCN',
        'find_targets',
        'upgrade_',
        'revert_',
        'split_offsets',
        'train_offsets_',
        'load_adapter',
        'set_adapter',
        'disable_adapter',
        'upgrade_config',
        'shorten_schedule',
        'load_baseline',
        'UpgradeError',
    ):
        assert name in mmdeform_upgrade.__all__ and callable(getattr(mmdeform_upgrade, name))


def test_everything_is_registered_in_the_root():
    from mmengine.registry import HOOKS, MODELS

    import mmdeform_upgrade

    assert MODELS.get('ZeroOffsetDCN') is mmdeform_upgrade.ZeroOffsetDCN
    assert MODELS.get('DeformUpgrade') is not None and HOOKS.get('DeformUpgradeHook') is not None


def test_upgrading_needs_no_mmengine(tmp_path):
    (tmp_path / 'mmengine.py').write_text('raise ImportError("not installed")')
    code = (
        'import sys, importlib.util\n'
        'find = importlib.util.find_spec\n'
        "importlib.util.find_spec = lambda name, *a: None if name == 'mmengine' else find(name, *a)\n"
        'import torch, mmdeform_upgrade\n'
        'net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))\n'
        "print(mmdeform_upgrade.upgrade_(net, 'last:1').names, 'mmengine' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={'PYTHONPATH': f'{tmp_path}:{ROOT}', 'PATH': ''},
    )
    assert result.stdout.splitlines()[-1:] == ["['0'] False"], result.stderr
