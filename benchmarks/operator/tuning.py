# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Settings of the GPU kernels: tiles, what is fused, the order of programs, the bytes of columns; measured one by one.

Part of ``gpu_report``. Every setting must first give the default's results. Kernels are compiled beforehand, by processes
without a GPU, into the cache that the measuring process reads.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks.operator import benchmark_op as operator

CONVOLVE = {
    2: ((128, 32, 8, 256, 3), (128, 32, 8, 256, 2), (128, 64, 8, 256, 2), (128, 64, 8, 128, 2), (64, 64, 4, 128, 2),
        (64, 32, 8, 512, 2), (64, 64, 4, 256, 2), (128, 64, 8, 128, 3), (64, 64, 4, 128, 1), (128, 64, 8, 128, 1),
        (128, 32, 8, 256, 1), (64, 64, 8, 256, 3)),
    4: ((128, 32, 8, 128, 3), (128, 32, 8, 128, 2), (64, 32, 4, 128, 2), (64, 32, 8, 256, 2), (128, 32, 8, 256, 2),
        (64, 32, 8, 256, 3), (64, 32, 4, 128, 1), (128, 32, 8, 128, 1), (64, 64, 4, 128, 2), (64, 32, 8, 512, 2)),
}  # yapf: disable
SAMPLE = ((32, 64, 4), (16, 64, 4), (16, 128, 4), (8, 128, 2), (32, 128, 8), (8, 256, 4), (16, 64, 2))
GATHER = ((4, 128, 1), (8, 128, 1), (16, 128, 1), (8, 64, 1), (8, 128, 2), (8, 256, 2), (16, 128, 2), (8, 256, 1))
PATCH = ((16, 128, 4, 3), (16, 128, 4, 2), (16, 128, 4, 1), (32, 128, 4, 3), (32, 128, 4, 1), (16, 64, 2, 3), (16, 64, 2, 1),
         (32, 64, 2, 2), (16, 128, 2, 2), (16, 128, 2, 1), (16, 256, 4, 2), (16, 256, 8, 2))  # yapf: disable
MEGABYTES = (256, 32, 64, 128, 512, 1024)


class Setting(NamedTuple):
    """A change of the backend."""

    kind: str  # what it is compared within
    title: str
    values: dict[str, Any]  # names of the backend's constants and functions


def forward_settings(itemsize: int) -> Iterator[Setting]:
    """Ways through the forward pass; the package's comes first."""
    from benchmarks.operator.candidates import Sampling
    from mmdeform_upgrade.ops.triton_backend import Tile

    for tile in CONVOLVE[itemsize]:
        p, c, warps, outputs, stages = tile
        yield Setting('fused', str(tile), {'_CONVOLVE': {itemsize: (Tile(p, c, warps, outputs, stages),)}})
    for order in (1, 0, 2):
        for tile in SAMPLE:
            values = {'FUSED': False, 'sample_kernel': Sampling(order, False), '_SAMPLE': Tile(*tile)}
            yield Setting(f'columns order={order}', str(tile), values)
    for size in MEGABYTES[1:4]:
        yield Setting('columns bytes', f'{size} MB', {'FUSED': False, 'DEFAULT_COLUMN_BYTES': size * 2**20})


def backward_settings() -> Iterator[Setting]:
    """Ways through the backward pass."""
    from benchmarks.operator.candidates import GatherByPatches, Sampling
    from mmdeform_upgrade.ops.triton_backend import Tile

    for tile in SAMPLE:
        yield Setting('plan', str(tile), {'_PLAN': Tile(*tile)})
    for order in (0, 1, 2):
        for tile in SAMPLE:
            values = {'sample_kernel': Sampling(order, True), '_PLAN': Tile(*tile)}
            yield Setting(f'plan late order={order}', str(tile), values)
    for tile in GATHER:
        yield Setting('gather', str(tile), {'_GATHER': Tile(*tile)})
    for patch in PATCH:
        yield Setting('gather', f'patches {patch}', {'_gather': GatherByPatches(*patch)})
    for size in MEGABYTES:
        kind = 'bytes' if size <= 512 else 'too many bytes'
        yield Setting(kind, f'{size} MB', {'DEFAULT_COLUMN_BYTES': size * 2**20})


@contextlib.contextmanager
def applied(values: dict[str, Any]) -> Iterator[None]:
    """The backend with other constants and functions; ``FUSED_UP_TO`` output channels is a choice for each call."""
    from mmdeform_upgrade.ops import chunks, triton_backend

    values = dict(values)
    if 'FUSED_UP_TO' in values:
        values['forward'] = _fused_up_to(values.pop('FUSED_UP_TO'))
    homes = {name: chunks if hasattr(chunks, name) else triton_backend for name in values}
    before = {name: getattr(home, name) for name, home in homes.items()}
    try:
        for name, home in homes.items():
            setattr(home, name, values[name])
        triton_backend._fits.clear()
        yield
    finally:
        for name, home in homes.items():
            setattr(home, name, before[name])
        triton_backend._fits.clear()


def _fused_up_to(outputs: dict[int, int]) -> Callable[..., torch.Tensor]:
    """The backend's forward pass, in one kernel up to so many output channels, by bytes of a number."""
    from mmdeform_upgrade.ops import triton_backend

    run = triton_backend.forward

    def forward(operands, geo):
        triton_backend.FUSED = outputs[operands.input.itemsize] >= geo.O
        try:
            return run(operands, geo)
        finally:
            triton_backend.FUSED = True

    return forward


def relative(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> float:
    """Largest root mean square difference, of the largest value."""
    pairs = zip(found, expected, strict=True)
    return max(float((f.double() - e.double()).square().mean().sqrt() / e.abs().max()) for f, e in pairs)


def sweep(
    settings: Iterable[Setting], function: Callable[[], Any], clock: Callable[[Any], float], limit: float, stop: Any
) -> dict[str, dict[str, float | str]]:
    """Milliseconds of a function with each setting, by kind; those that fail or differ from the default say so."""
    found: dict[str, dict[str, float | str]] = {}
    expected = function()
    expected = expected if isinstance(expected, tuple) else (expected,)
    for kind, title, values in settings:
        if stop():
            break
        try:
            with applied(values):
                results = function()
                error = relative(results if isinstance(results, tuple) else (results,), expected)
                result: float | str = clock(function) if error < limit else f'differs by {error:.1e}'
        except Exception as error:  # more shared memory than there is, and the like
            result = f'{type(error).__name__}: {str(error)[:80]}'
        found.setdefault(kind, {})[title] = result
    return found


def tune(shape, dtype, device: str, clock, limit: float, stop) -> dict[str, Any]:
    """All settings of both passes on one shape."""
    (x, offset, weight), grad = operator.make(shape, dtype, device)
    inputs, function = (x, offset, weight), operator.ours('triton')

    def forward():
        with torch.no_grad():
            return function(*inputs)

    output = function(*inputs)

    def backward():
        return torch.autograd.grad(output, inputs, grad, retain_graph=True)

    return {
        'forward': sweep(forward_settings(x.itemsize), forward, clock, limit, stop),
        'backward': sweep(backward_settings(), backward, clock, limit, stop),
    }


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def best(rows: Iterable[dict[str, float | str]]) -> tuple[float, str]:
    """The setting of the lowest geometric mean over the shapes; infinite if there is none that ran on all of them."""
    rows = [row for row in rows if row]  # time may have run out before a shape's turn
    everywhere = [title for title in (rows or [{}])[0] if all(isinstance(row.get(title), float) for row in rows)]
    means = [(geometric_mean(row[title] for row in rows), title) for title in everywhere]  # type: ignore[misc]
    return min(means, default=(math.inf, ''))


def winners(tuned: dict[tuple[tuple[int, ...], int], dict[str, Any]]) -> dict[str, Any]:
    """What is fastest over all shapes; keys of ``tuned`` are a shape and the bytes of a number."""
    from mmdeform_upgrade.ops import triton_backend as backend

    settings = [*forward_settings(2), *forward_settings(4), *backward_settings()]
    known = {(kind, title): values for kind, title, values in settings}

    def of(name: str, kind: str) -> tuple[float, str]:
        return best(row[name].get(kind, {}) for row in tuned.values())

    values: dict[str, Any] = {}
    plans = {'plan': 0, **{f'plan late order={order}': order for order in (0, 1, 2)}}
    columns = {order: of('forward', f'columns order={order}') for order in (0, 1, 2)}
    plan = min(plans, key=lambda kind: of('backward', kind)[0] * min(columns[plans[kind]][0], 1e9))
    order = plans[plan]
    for kind, title in (
        (f'columns order={order}', columns[order][1]),
        (plan, of('backward', plan)[1]),
        ('gather', of('backward', 'gather')[1]),
        ('bytes', of('backward', 'bytes')[1]),
    ):
        values |= known.get((kind, title), {})
    values.pop('FUSED', None)
    values |= {'FUSED_UP_TO': {}, '_CONVOLVE': {}}
    for size in (2, 4):
        rows = {
            shape: row['forward'] for (shape, itemsize), row in tuned.items() if itemsize == size and row['forward']
        }
        values['FUSED_UP_TO'][size], title = _threshold(rows, f'columns order={order}', columns[order][1])
        tile = known.get(('fused', title), {}).get('_CONVOLVE', {}).get(size, ())
        values['_CONVOLVE'][size] = (*tile, *backend._CONVOLVE[size])
    return values


def _threshold(rows: dict[tuple[int, ...], dict[str, Any]], kind: str, by_columns: str) -> tuple[int, str]:
    """Up to how many output channels to fuse, and with which tile."""
    choices = {}
    for most in (0, 128, 256, 2**30):
        for tile in next(iter(rows.values()), {}).get('fused', {}):
            times = [
                row.get('fused', {}).get(tile) if shape[1] <= most else row.get(kind, {}).get(by_columns)
                for shape, row in rows.items()
            ]
            if all(isinstance(t, float) for t in times):
                choices[most, tile] = geometric_mean(times)  # type: ignore[arg-type]
    return min(choices, key=choices.__getitem__) if choices else (2**30, '')


def compile_all(part: int, parts: int) -> None:
    """Compile a part of the kernels that the settings need, for compute capability 9.0; needs no GPU."""
    from triton.runtime import driver

    from benchmarks.operator.host_path import NullDriver
    from mmdeform_upgrade.ops import chunks, functional

    torch.set_num_threads(1)
    driver.set_active(NullDriver(90))
    functional._check_triton = lambda input: None
    plain, narrow = Setting('', '', {}), (1, 128, 16, 16)
    work: list[Any] = [
        ((2, 64, 24, 24), dtype, tf32, last, plain, True)
        for dtype, tf32 in (
            (torch.bfloat16, True),
            (torch.float32, True),
            (torch.float16, True),
            (torch.float32, False),
        )
        for last in (False, True)
    ]
    for dtype in (torch.bfloat16, torch.float32):
        for channels in (512, 256, 128):
            settings = [s for s in forward_settings(dtype.itemsize) if s.kind != 'columns bytes']
            work += [((1, channels, 16, 16), dtype, True, False, setting, False) for setting in settings]
        work += [(narrow, dtype, True, False, s, True) for s in backward_settings() if 'bytes' not in s.kind]
    for shape, dtype, tf32, last, setting, backward in work[part::parts]:
        torch.backends.cudnn.allow_tf32 = tf32
        inputs, grad = operator.make(shape, dtype, 'cpu')
        if last:
            inputs = [t.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for t in inputs]
        with contextlib.suppress(Exception), applied(setting.values):
            output = operator.ours('triton')(*inputs)
            for budget in (2**30, 256 * shape[1] * 9) if backward else ():
                chunks.COLUMN_BYTES['cpu'] = budget
                torch.autograd.grad(output, inputs, grad, retain_graph=True)


def compile_in_background(processes: int) -> list[subprocess.Popen]:
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-W', 'ignore', '-m', 'benchmarks.operator.tuning']
    return [subprocess.Popen([*command, str(i), str(processes)], env=environment) for i in range(processes)]


if __name__ == '__main__':
    compile_all(int(sys.argv[1]), int(sys.argv[2]))
