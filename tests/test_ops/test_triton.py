"""The Triton backend: interpreted in a process of its own, and on a GPU where there is one."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmdeform_upgrade.errors import UpgradeError
from mmdeform_upgrade.ops import deform_conv2d

from .cases import CASES, Case
from .triton_cases import compare

HERE = Path(__file__).parent


def test_interpreted_kernels_are_correct():
    pytest.importorskip('triton')
    run = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--noconftest',
                          str(HERE / 'triton_cases.py')], cwd=HERE.parents[1], capture_output=True, text=True,
                         timeout=600, env={**os.environ, 'TRITON_INTERPRET': '1', 'CUDA_VISIBLE_DEVICES': '',
                                           'OMP_NUM_THREADS': '1'})
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', [*CASES, 'wide'])
def test_kernels_are_correct_on_a_gpu(name, dtype):
    pytest.importorskip('triton')
    wide = Case(batch=3, channels=192, out_channels=320, size=(19, 21), deform_groups=2, mask=True)
    flags = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        compare(CASES.get(name, wide), dtype, 'cuda')
    finally:
        torch.backends.cudnn.allow_tf32 = flags


def test_a_cpu_tensor_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    with pytest.raises(UpgradeError, match="use backend='eager'"):
        deform_conv2d(*Case().tensors(torch.float32)[:3], padding=1, backend='triton')
