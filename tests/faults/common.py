"""What the sweeps share: tools/train.py in processes of its own, and what they compare."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from mmdeform_upgrade.readers import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': f'{ROOT}:{os.environ.get("PYTHONPATH", "")}'}


def start(config, work_dir, *args, log=None, launcher=(), env=None):
    """tools/train.py, started; its output goes to the end of ``log``."""
    command = [sys.executable, *launcher, str(ROOT / 'tools' / 'train.py'), config, '--work-dir', work_dir, *args]
    with open(log or os.devnull, 'ab') as output:
        return subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env={**ENV, **(env or {})}
        )


def finished(process, log, timeout=600):
    """Wait for a run that has to succeed."""
    if process.wait(timeout):
        sys.exit(f'the run ended with {process.returncode}:\n' + Path(log).read_text(errors='replace')[-3000:])


def differences(one, other, parts=('state_dict', 'optimizer', 'param_schedulers')):
    """Names of everything that is not the same, to the bit, in two checkpoints."""
    return [
        name for part in parts for name in _differences(*(read_checkpoint(path)[part] for path in (one, other)), part)
    ]


def _differences(a, b, name):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), name
        return [found for key in a for found in _differences(a[key], b[key], f'{name}.{key}')]
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), name
        return [found for i, pair in enumerate(zip(a, b, strict=True)) for found in _differences(*pair, f'{name}[{i}]')]
    return [] if (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b) else [name]


def arguments(description, **options):
    """The command line of a sweep: numbers."""
    parser = argparse.ArgumentParser(description=description)
    for name, value in options.items():
        parser.add_argument(f'--{name}', type=type(value), default=value)
    return parser.parse_args()


def report(begun, figures):
    """Print the figures with their conditions."""
    figures = {
        **figures,
        'seconds': round(time.monotonic() - begun),
        'conditions': f'Python {platform.python_version()}, torch {torch.__version__}, {platform.system()}, '
        f'{os.cpu_count()} cores',
    }
    print(json.dumps(figures, indent=2), flush=True)
