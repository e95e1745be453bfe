"""Run MIM's commands on this package, installed as a wheel, in an environment of their own.

    python tests/families/mim.py [--folder FOLDER]

The environment sees the frameworks of this one; MIM and the setuptools that it needs (it imports pkg_resources) are
put before them. What stands in docs/releases.md under "MIM" runs, on pictures of shapes, for one epoch.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    'openmim==0.3.9',
    'setuptools==60.10.0',
    'model-index==0.1.11',
    'opendatalab==0.0.10',
    'ordered-set',
    'click',
    'colorama',
    'tabulate',
    'rich',
    'Markdown',
    'markdown-it-py',
    'mdurl',
    'pygments',
    'requests',
    'urllib3',
    'idna',
    'certifi',
    'charset-normalizer',
    'pandas',
    'pytz',
    'tzdata',
    'oss2',
    'crcmod',
    'aliyun-python-sdk-core',
    'aliyun-python-sdk-kms',
    'jmespath',
    'cryptography',
    'cffi',
    'pycparser',
    'pycryptodome',
)
SIZES = ('--train', '16', '--val', '8', '--test', '8', '--size', '96')


def pip(*arguments):
    command = [sys.executable, '-m', 'pip', '--disable-pip-version-check', *map(str, arguments)]
    subprocess.run(command, check=True)


def install(folder):
    """An environment with MIM and a wheel of this package, over the frameworks of the running one."""
    venv.create(folder / 'venv', with_pip=False)
    site = Path(sysconfig.get_path('purelib', vars={'base': str(folder / 'venv'), 'platbase': str(folder / 'venv')}))
    pip('install', '-q', '--no-deps', '--target', site, *PACKAGES)
    files = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:  # a copy, since building leaves files in the tree
        if (ROOT / name).is_file():
            (folder / 'tree' / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / 'tree' / name).write_bytes((ROOT / name).read_bytes())
    pip('wheel', '-q', '--no-deps', '--no-build-isolation', '-w', folder, folder / 'tree')
    pip('install', '-q', '--no-deps', '--target', site, next(folder.glob('*.whl')))
    (site / 'zz_frameworks.pth').write_text(sysconfig.get_path('purelib') + '\n')


def commands():
    """The page's commands of MIM, in order."""
    page = (ROOT / 'docs' / 'releases.md').read_text(encoding='utf8')
    page = re.sub(r'\bepoch_\d+\.pth', 'epoch_1.pth', page)  # as long as the runs here are
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r'^mim .*$', page, re.M)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, default=ROOT / 'build' / 'mim', help='default: %(default)s')
    folder = parser.parse_args().folder.resolve()
    if not (folder / 'venv').is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        install(folder)
    python = folder / 'venv' / 'bin' / 'python'
    env = {**os.environ, 'PYTHONPATH': '', 'PATH': f'{python.parent}{os.pathsep}{os.environ["PATH"]}'}
    work = folder / 'work'
    work.mkdir(exist_ok=True)
    compose = ROOT / 'benchmarks' / 'datasets' / 'compose_shapes.py'
    if not (work / 'data').is_dir():
        subprocess.run(
            [python, compose, '--out', 'data/shapes/VOCdevkit', '--seed', '0', *SIZES],
            check=True,
            cwd=work,
            env={**env, 'PYTHONPATH': str(ROOT)},
        )
    for arguments in commands():
        if arguments[0] == 'train':
            arguments += ['--cfg-options', 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=4']
        print('mim', *arguments, flush=True)
        result = subprocess.run([python, '-m', 'mim', *arguments], cwd=work, env=env, text=True, capture_output=True)
        print(result.stdout[-600:])
        if result.returncode:
            sys.exit(f'mim {arguments[0]} failed with {result.returncode}:\n{result.stderr[-3000:]}')


if __name__ == '__main__':
    main()
