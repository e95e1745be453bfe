# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The kernels compile for the GPUs that they are meant for, and fit in their memory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('triton')

from .host_path import SHARED_MEMORY


@pytest.mark.slow
@pytest.mark.parametrize('dtype, capability', zip(['bfloat16', 'float32'] * 2, SHARED_MEMORY, strict=True))
def test_every_kernel_compiles_for_a_gpu(capability, dtype):
    options = {'capability': capability, 'channels': 256, 'dtype': dtype, 'repetitions': 5}
    run = subprocess.run(
        [sys.executable, '-m', 'benchmarks.operator.host_path', *(f'--{k}={v}' for k, v in options.items())],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    launches = re.findall(r'(forward.*): (\d+) launches', run.stdout)
    assert launches == [('forward', '1'), ('forward and backward', '3')] * 2
