"""The Triton backend: interpreted in a process of its own, and on a GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmdeform_upgrade.errors import UpgradeError
from mmdeform_upgrade.ops import deform_conv2d, functional

from .cases import CASES, TOLERANCE, Case, error, grad_like_output, results
from .extremes import MANY, TALL, VALUES, WIDE, agree, planted
from .triton_cases import compare

HERE = Path(__file__).parent
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')


@pytest.mark.slow
def test_interpreted_kernels_are_correct():
    pytest.importorskip('triton')
    run = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--noconftest', str(HERE / 'triton_cases.py')],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, 'TRITON_INTERPRET': '1', 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'},
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


@on_a_gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', [*CASES, 'wide'])
def test_kernels_are_correct_on_a_gpu(name, dtype):
    pytest.importorskip('triton')
    wide = Case(batch=3, channels=192, out_channels=320, size=(19, 21), deform_groups=2, mask=True)
    compare(CASES.get(name, wide), dtype, 'cuda')


@on_a_gpu
def test_tf32_is_used_where_convolutions_use_it(monkeypatch):
    """And is as exact as theirs: ten mantissa bits."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    case = Case(batch=3, channels=192, out_channels=320, size=(19, 21))
    with pytest.raises(AssertionError, match='errors above'):
        compare(case, torch.float32, 'cuda')
    monkeypatch.setitem(TOLERANCE, torch.float32, 2e-3)
    compare(case, torch.float32, 'cuda')


@on_a_gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_auto_is_triton_on_a_gpu_and_compiles_whole(dtype):
    case = Case(channels=32, out_channels=48, size=(9, 11))
    tensors = [None if t is None else t.detach().to('cuda').requires_grad_() for t in case.tensors(dtype)]
    grad = grad_like_output(case, dtype).cuda()
    found, chosen = (results(deform_conv2d, case, tensors, grad, backend=name) for name in ('auto', 'triton'))
    compiled = results(torch.compile(deform_conv2d, fullgraph=True), case, tensors, grad)
    for name in found:
        assert torch.equal(found[name], chosen[name]), f'{name}: not the same in every call'
        assert error(found[name], compiled[name]) <= 1e-2, f'{name}: compiled'  # the bias sums elsewhere


@on_a_gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_a_cuda_graph_of_both_passes_computes_the_same(dtype):
    case = Case(channels=32, out_channels=48, size=(9, 11))
    tensors = [None if t is None else t.detach().to('cuda').requires_grad_() for t in case.tensors(dtype)]
    grad = grad_like_output(case, dtype).cuda()
    expected = results(deform_conv2d, case, tensors, grad)
    fixed = [None if t is None else torch.rand_like(t).requires_grad_() for t in tensors]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # kernels are compiled when they are launched first, which a graph cannot hold
        for _ in range(3):
            results(deform_conv2d, case, fixed, grad)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = results(deform_conv2d, case, fixed, grad)
    with torch.no_grad():
        for static, tensor in zip(fixed, tensors, strict=True):
            if static is not None:
                static.copy_(tensor)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@on_a_gpu
@pytest.mark.parametrize('value', VALUES)
def test_offsets_that_are_no_use_agree_on_a_gpu(value):
    case = Case(size=(4, 3), deform_groups=2, mask=True)
    agree(case, [None if t is None else t.detach().cuda().requires_grad_() for t in planted(case, value)], 'triton')


@on_a_gpu
def test_ten_thousand_maps_and_wide_ones_on_a_gpu():
    for case, dtype in ((MANY, torch.float32), (WIDE, torch.float16), (TALL, torch.bfloat16)):
        agree(case, [None if t is None else t.detach().cuda().requires_grad_() for t in case.tensors(dtype)], 'triton')


def test_a_cpu_tensor_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    monkeypatch.setattr(functional, '_TRITON', 3)
    with pytest.raises(UpgradeError, match="needs a CUDA tensor, input is on cpu .*; use backend='eager'"):
        deform_conv2d(*Case().tensors(torch.float32)[:3], padding=1, backend='triton')
