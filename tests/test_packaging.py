"""What an installed package carries."""

import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

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
    (wheel,) = tmp_path.glob('*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    for name in ('configs/ssd512_upgrade.py', 'configs/_base_/models/ssd512_r50.py', 'tools/train.py'):
        assert f'mmdeform_upgrade/.mim/{name}' in names, name
    metadata = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith('METADATA'))).decode()
    required = [line for line in metadata.splitlines() if line.startswith('Requires-Dist') and 'extra' not in line]
    assert not any('mm' in line for line in required), 'neither framework family is pulled in'


def test_an_editable_install_has_them_too():
    mim = Path(mmdeform_upgrade.__file__).parent / '.mim'
    assert (mim / 'configs' / 'ssd512_upgrade.py').is_file() and (mim / 'tools' / 'train.py').is_file()


def _needed(requirement, found):
    """Names of a requirement and of all that it needs here, installed."""
    name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
    if (name, extras) in found:
        return
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return  # an optional one
    found.add((name, extras))
    for text in distribution.requires or ():
        inner = Requirement(text)
        if inner.marker is None or any(inner.marker.evaluate({'extra': extra}) for extra in extras or {''}):
            _needed(inner, found)


def _pins():
    lines = (ROOT / 'constraints.txt').read_text(encoding='utf8').splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith('#')]


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12'])
def test_every_python_gets_pins_that_can_be_installed_there(python):
    refused = {}
    for pin in (pin for pin in _pins() if pin.marker is None or pin.marker.evaluate({'python_version': python})):
        try:
            needs = importlib.metadata.metadata(pin.name)['Requires-Python'] or ''
        except importlib.metadata.PackageNotFoundError:
            continue  # what only a build of mmcv needs
        if not SpecifierSet(needs).contains(f'{python}.1'):
            refused[str(pin)] = needs
    assert refused == {}


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason='the constraints are those of another Python')
def test_the_constraints_name_every_package_of_the_tests():
    pinned = _pins()
    assert all(str(pin.specifier).startswith('==') for pin in pinned)
    found = set()
    _needed(Requirement('mmdeform_upgrade[onedl,dev]'), found)
    names = {name for name, _ in found} - {'mmdeform-upgrade'}
    assert len(names) > 60 and names - {canonicalize_name(pin.name) for pin in pinned} == set()
