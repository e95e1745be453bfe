"""Run tests with the original OpenMMLab releases in front of the frameworks that are installed.

    python tests/families/openmmlab.py [--site FOLDER] [pytest's arguments]

mmengine, mmdet, mmseg and the Python part of mmcv are those releases; PyTorch, and mmcv's compiled operators where it has
them, are the environment's, since those releases' own PyTorch (2.1 to 2.5) is what an environment is for.
Where you have such an environment, activate it and run `python -m pytest` there instead.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RELEASES = (
    'mmengine==0.10.7',
    'mmdet==3.3.0',
    'mmsegmentation==1.2.2',
    'numpy==1.26.4',
    'setuptools==75.8.0',
)  # mmengine 0.10.7 needs pkg_resources
MMCV = 'mmcv==2.1.0'


def pip(*arguments, **env):
    subprocess.run(
        [sys.executable, '-m', 'pip', '--disable-pip-version-check', *arguments], check=True, env={**os.environ, **env}
    )


def install(site):
    """Put the releases into a folder."""
    staging = site.with_name(site.name + '.partial')
    shutil.rmtree(staging, ignore_errors=True)
    pip('install', '-q', '--no-deps', '--target', str(staging), *RELEASES)
    shutil.rmtree(staging / 'tests', ignore_errors=True)  # mmsegmentation's, which would hide this project's
    with tempfile.TemporaryDirectory() as folder:
        pip(
            'download',
            '-q',
            '--no-deps',
            '--no-build-isolation',
            '--no-binary',
            'mmcv',
            '-d',
            folder,
            MMCV,
            PYTHONPATH=str(staging),
        )
        with tarfile.open(next(Path(folder).glob('*.tar.gz'))) as archive:
            archive.extractall(folder, filter='data')
        shutil.copytree(next(Path(folder).glob('mmcv-*/mmcv')), staging / 'mmcv', ignore=shutil.ignore_patterns('csrc'))
    for compiled in Path(find_spec('mmcv').origin).parent.glob('_ext*.so'):
        shutil.copy(compiled, staging / 'mmcv')
    staging.rename(site)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--site', type=Path, default=ROOT / 'build' / 'openmmlab', help='where to install (default: %(default)s)'
    )
    args, pytest_arguments = parser.parse_known_args()
    site = args.site.resolve()
    if not site.is_dir():
        site.parent.mkdir(parents=True, exist_ok=True)
        install(site)
    env = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(ROOT), str(site)]),
        # As PyTorch before 2.6 read by default, and as mmengine 0.10.7 expects. Ours is a safe reader all the same.
        'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1',
    }
    code = (
        'import mmcv, mmdet, mmengine, mmseg, numpy, torch\n'
        "print(*(f'{m.__name__} {m.__version__}' for m in (mmengine, mmcv, mmdet, mmseg, numpy, torch)), sep=', ')"
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT, env=env)
    sys.exit(subprocess.run([sys.executable, '-m', 'pytest', *pytest_arguments], cwd=ROOT, env=env).returncode)


if __name__ == '__main__':
    main()
