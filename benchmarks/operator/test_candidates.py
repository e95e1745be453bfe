"""What is measured on a GPU computes what the package's kernels do; interpreted, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch
from benchmarks.operator import tuning
torch.backends.cudnn.allow_tf32 = False
shape = (1, 16, 5, 3)
tuning.CONVOLVE = {size: tiles[:1] for size, tiles in tuning.CONVOLVE.items()}
tuning.SAMPLE, tuning.GATHER, tuning.PATCH = tuning.SAMPLE[1:2], tuning.GATHER[1:2], tuning.PATCH[2:3]
found = tuning.tune(shape, torch.float32, 'cpu', lambda function: 1.0, 1e-5, lambda: False)
wrong = {(k, t): r for kinds in found.values() for k, row in kinds.items() for t, r in row.items() if r != 1.0}
assert not wrong, wrong
assert {'gather', 'plan late order=2', 'too many bytes'} < set(found['backward']), list(found['backward'])
values = tuning.winners({(shape, 4): found})
assert tuning.sweep([tuning.Setting('all', 'winners', values)], lambda: torch.ones(1), lambda f: 1.0, 1e-5, lambda: False)
print(sum(len(row) for kinds in found.values() for row in kinds.values()), 'settings')
"""


@pytest.mark.slow
def test_every_kind_of_setting_computes_the_same():
    pytest.importorskip('triton')
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', SCRIPT],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, 'TRITON_INTERPRET': '1', 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split()[1] == 'settings'
