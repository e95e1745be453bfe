"""What an installed package carries."""
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mmdeform_upgrade

from .conftest import ROOT


def test_a_wheel_carries_configs_and_tools_for_mim(tmp_path):
    tree = tmp_path / 'tree'
    files = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not files:
        pytest.skip('not a git checkout')
    for name in files:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', tmp_path, tree]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    wheel, = tmp_path.glob('*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    for name in ('configs/ssd512_upgrade.py', 'configs/_base_/models/ssd512_r50.py', 'tools/train.py'):
        assert f'mmdeform_upgrade/.mim/{name}' in names, name
    metadata = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith('METADATA'))).decode()
    required = [line for line in metadata.splitlines() if line.startswith('Requires-Dist') and 'extra' not in line]
    assert not any('mm' in line for line in required), 'neither framework family is pulled in'


def test_an_editable_install_has_them_too():
    mim = Path(mmdeform_upgrade.__file__).parent / '.mim'
    assert (mim / 'configs' / 'ssd512_upgrade.py').is_file() and (mim / 'tools' / 'train.py').is_file()
