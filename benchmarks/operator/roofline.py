# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What each kernel of the Triton backend has to move and to compute, and how far from that it is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import now

OURS = ('convolve_kernel', 'sample_kernel', 'gather_kernel')


def ceilings(device: str) -> dict[str, float]:
    """Bytes that a copy reads and writes, and operations of large products, each a second."""
    size = 2**13 if device == 'cuda' else 2**8
    large = torch.randn(size, size, 4, device=device)
    target = torch.empty_like(large)
    rates = {'bytes': 2 * large.nbytes / _seconds(lambda: target.copy_(large), device)}
    for name, dtype in (('bfloat16', torch.bfloat16), ('tf32', torch.float32)):
        matrix = large[..., 0].to(dtype).contiguous()
        torch.backends.cuda.matmul.allow_tf32 = True
        rates[name] = 2 * size**3 / _seconds(lambda m=matrix: m @ m, device)
        torch.backends.cuda.matmul.allow_tf32 = False
    return rates


def _seconds(function: Callable[[], Any], device: str, calls: int = 10) -> float:
    for _ in range(3):
        function()
    start = now(device)
    for _ in range(calls):
        function()
    return (now(device) - start) / calls


def floors(shape, itemsize: int, rates: dict[str, float]) -> dict[str, float]:
    """Least milliseconds of each kernel and of both passes, for 3x3 taps and as many outputs as inputs."""
    n, c, h, w = shape
    positions, taps = n * h * w, 9
    grid, columns, samples = positions * c * itemsize, positions * taps * c * itemsize, positions * taps
    offsets, weight = samples * 2 * itemsize, taps * c * c * itemsize
    work = 2 * positions * taps * c * c / rates['bfloat16' if itemsize == 2 else 'tf32']
    seconds = {
        'convolve_kernel': max(work, (2 * grid + offsets + weight) / rates['bytes']),
        'sample_kernel': (grid + 2 * columns + 2 * offsets + 16 * samples) / rates['bytes'],
        'gather_kernel': (grid + columns + 20 * samples) / rates['bytes'],
        'backward': max(2 * work, (4 * grid + 2 * offsets + 2 * weight) / rates['bytes']),
        'backward by columns': max(2 * work, (4 * grid + 5 * columns) / rates['bytes']),
    }
    return {name: 1e3 * s for name, s in seconds.items()}


def kernel_times(function: Callable[[], Any], calls: int = 3) -> dict[str, list[float]]:
    """Milliseconds and launches of each GPU kernel in one call, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    function()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
    total: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for event in profiler.key_averages():
        spent = getattr(event, 'self_device_time_total', 0) or getattr(event, 'self_cuda_time_total', 0)
        if spent:
            total[event.key[:90]] += spent / calls / 1e3
            launches[event.key[:90]] += event.count / calls
    return {name: [spent, launches[name]] for name, spent in total.most_common(24)}


def against_floors(times: dict[str, list[float]], least: dict[str, float]) -> dict[str, float]:
    """Each of our kernels' time over its floor."""
    return {name: times[name][0] / least[name] for name in OURS if name in times}


def products(shape, dtype: torch.dtype, device: str, clock: Callable[[Any], float]) -> dict[str, float]:
    """Milliseconds of the backward pass' two products, by each way to make them."""
    from mmdeform_upgrade.ops import matrices

    n, c, h, w = shape
    rows, kernel = (
        torch.randn(n * h * w, c, device=device, dtype=dtype),
        torch.randn(c, 9 * c, device=device, dtype=dtype),
    )
    columns = torch.randn(n * h * w, 9 * c, device=device, dtype=dtype)
    grid = rows.view(n, h, w, c).permute(0, 3, 1, 2)
    image = columns.view(n, h, w, 9 * c).permute(0, 3, 1, 2)
    weight = torch.empty(c, 9 * c, 1, 1, device=device, dtype=dtype)
    turned = kernel.t()[:, :, None, None]

    def kernel_gradient():
        return torch.ops.aten.convolution_backward(
            grid, image, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
        )[1]

    ways: dict[str, Callable[[], Any]] = {
        'columns: product': lambda: rows @ kernel,
        'columns: image': lambda: torch.nn.functional.conv2d(grid, turned),
        'kernel: product': lambda: rows.t() @ columns,
        'kernel: image': kernel_gradient,
    }
    if dtype == torch.float32 and device == 'cuda':
        ways['columns: row'] = lambda: matrices._as_convolution(rows, kernel.t())
        ways['kernel: row'] = lambda: matrices._pointwise_grad(rows, columns)
    return {name: clock(way) for name, way in ways.items()}


def waited(processes, seconds: float) -> float:
    """Wait for processes, but not longer than ``seconds`` for all of them; what was left."""
    end = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except Exception:
            process.kill()
    return end - time.monotonic()
