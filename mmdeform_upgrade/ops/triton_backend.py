# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Deformable convolution with Triton kernels. Imported only when the backend is chosen; needs triton.

Forward: one kernel that gathers and multiplies on tensor cores (for a grouped convolution: columns, then a
batched product). Backward: one kernel makes the columns, for the kernel's gradient, and the gradients of offset and
mask; the input's is gathered through the sorted list of what every sample reads. Nothing is added atomically, so
every gradient is deterministic.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import matrices
from .chunks import cut
from .geometry import Geometry
from .passes import Grads, Wanted
from .triton_kernels import convolve_kernel, corner_kernel, gather_kernel, plan_kernel, sample_kernel

INTERPRETED = os.environ.get('TRITON_INTERPRET', '0') == '1'  # the interpreter multiplies bfloat16 wrongly


FUSED = True  # whether the forward pass samples and multiplies in one kernel, where it can


class Tile(NamedTuple):
    """What one program works on at a time; of ``gather_kernel``, corners instead of positions."""

    positions: int
    channels: int
    warps: int
    outputs: int = 0
    stages: int = 3  # of the software pipeline


# The fastest, or nearly, of those tried on an H100 for the shapes of docs/performance.md.
_SAMPLE = Tile(32, 64, 4)
_PLAN = Tile(16, 64, 4)
_CORNER = Tile(128, 0, 4)
_GATHER = Tile(4, 128, 1)
# By bytes of a number; each for GPUs that lack the shared memory of the one before it.
_CONVOLVE = {
    2: (Tile(128, 32, 8, 256), Tile(128, 32, 8, 128), Tile(64, 32, 4, 128, 2)),
    4: (Tile(128, 32, 8, 128), Tile(64, 32, 8, 128), Tile(64, 32, 4, 128, 2), Tile(64, 32, 4, 64, 2)),
}
_fits: dict[tuple[torch.device, int], int] = {}  # which of them a device has the memory for


def _fitting(tile: Tile, geo: Geometry) -> Tile:
    """The tile with no more channels than a deform group has."""
    return tile._replace(channels=min(tile.channels, triton.next_power_of_2(max(16, geo.C // geo.G))))


def forward(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, geo: Geometry
) -> Tensor:
    """See :class:`.passes.Passes`."""
    saved = _read(input, offset, mask)
    output = saved[0].new_empty((geo.N * geo.L, geo.O))
    if FUSED and geo.groups == 1:
        _convolve(output, saved, weight, bias, geo)
    else:
        _convolve_columns(output, saved, matrices.dense(weight), bias, geo)
    return matrices.rows_to_map(output, geo, input.dtype, matrices.format_of(input))


def _read(input: Tensor, offset: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of pixels, offsets and modulation as the kernels read them."""
    rows = matrices.map_to_rows(input, input.dtype).contiguous()
    shift = offset.to(torch.float32).contiguous()
    modulation = rows.new_empty(0, dtype=torch.float32) if mask is None else mask.to(torch.float32).contiguous()
    return rows, shift, modulation


def backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    geo: Geometry,
    wanted: Wanted,
) -> Grads:
    """See :class:`.passes.Passes`."""
    saved = rows, shift, modulation = _read(input, offset, mask)
    weight = matrices.dense(weight)
    grad_rows = matrices.map_to_rows(grad_output, weight.dtype)
    sums = Grads(
        torch.empty_like(rows, dtype=torch.float32) if wanted.input else None,  # the first gather writes all of it
        torch.empty_like(shift) if wanted.plan else None,
        matrices.new_kernel_grad(weight, geo) if wanted.weight else None,
        torch.empty_like(modulation) if wanted.plan and modulation.dim() == 4 else None,
    )
    cuts = cut(geo, rows.itemsize, rows.device.type)
    for taps in cuts.taps:
        kernel = matrices.kernel_matrix(weight, taps, geo, weight.dtype)
        grad_kernel = None
        for positions in cuts.positions:
            columns = _column_grads(sums, saved, grad_rows[positions], kernel, positions, taps, geo)
            if sums.weight is not None:
                columns = _sample(saved, positions, taps, geo) if columns is None else columns
                grad_kernel = matrices.add_grad_kernel(grad_kernel, columns, grad_rows[positions], geo)
            del columns  # before those of the next piece are made
        if sums.weight is not None and grad_kernel is not None:
            matrices.store_kernel(sums.weight, grad_kernel, taps, geo)
    grad_input = sums.input
    if grad_input is not None:
        grad_input = grad_input.view(geo.N, geo.H, geo.W, geo.C).permute(0, 3, 1, 2)
    return sums._replace(input=grad_input)


def _column_grads(
    sums: Grads,
    saved: tuple[Tensor, Tensor, Tensor],
    grad_rows: Tensor,
    kernel: Tensor,
    positions: slice,
    taps: slice,
    geo: Geometry,
) -> Tensor | None:
    """Bring the gradient of some columns to input, offset and mask; the columns themselves, if they came up."""
    if sums.input is None and sums.offset is None:
        return None
    grad_columns = matrices.grad_columns(grad_rows, kernel, geo).contiguous()
    columns = None
    if sums.offset is not None:
        columns = _plan_grads(sums, saved, grad_columns, positions, taps, geo)
    if sums.input is not None:
        _gather(sums.input, saved, grad_columns, positions, taps, geo)
    return columns


def _convolve(
    output: Tensor, saved: tuple[Tensor, Tensor, Tensor], weight: Tensor, bias: Tensor | None, geo: Geometry
) -> None:
    """Sample and multiply in one kernel, with the largest tile that the device has the memory for."""
    if not len(output):
        return
    kernel = matrices.kernel_matrix(weight, slice(0, geo.K), geo, weight.dtype).contiguous()
    tf32 = kernel.dtype == torch.float32 and matrices.tf32_allowed()
    if tf32:
        kernel = ((kernel.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)  # see _rounded in the kernels
    bias = kernel if bias is None else bias.contiguous()
    tiles, device = _CONVOLVE[kernel.itemsize], (kernel.device, kernel.itemsize)
    while True:
        index = _fits.setdefault(device, 0)
        try:
            _launch_convolve(tiles[index], output, saved, kernel, bias, tf32, geo)
        except triton.OutOfResources:
            if index + 1 == len(tiles):
                raise
            _fits[device] = index + 1
        else:
            return


def _launch_convolve(
    tile: Tile,
    output: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    kernel: Tensor,
    bias: Tensor,
    tf32: bool,
    geo: Geometry,
) -> None:
    rows, shift, modulation = saved
    tile = _fitting(tile, geo)
    outputs = min(triton.next_power_of_2(max(16, geo.O)), tile.outputs)
    convolve_kernel[(triton.cdiv(len(output), tile.positions), triton.cdiv(geo.O, outputs))](
        rows,
        shift,
        modulation,
        kernel,
        bias,
        output,
        len(output),
        geo.C,
        geo.O,
        **_options(tile, modulation, geo),
        BIASED=bias is not kernel,
        TF32=tf32,
        UPCAST=INTERPRETED and rows.dtype == torch.bfloat16,
        BLOCK_C=tile.channels,
        BLOCK_O=outputs,
        num_stages=tile.stages,
    )


def _convolve_columns(
    output: Tensor, saved: tuple[Tensor, Tensor, Tensor], weight: Tensor, bias: Tensor | None, geo: Geometry
) -> None:
    """Sample some columns, multiply, forget them."""
    cuts = cut(geo, output.itemsize, output.device.type)
    total = torch.empty_like(output, dtype=torch.float32) if len(cuts.taps) > 1 else output
    for taps in cuts.taps:
        kernel = matrices.kernel_matrix(weight, taps, geo, weight.dtype)
        for positions in cuts.positions:
            columns = _sample(saved, positions, taps, geo)
            matrices.project(total[positions], columns, kernel, geo, first=taps.start == 0)
    output.copy_(total if bias is None else total + bias)


def _sample(saved: tuple[Tensor, Tensor, Tensor], positions: slice, taps: slice, geo: Geometry) -> Tensor:
    """The columns (p, k*C) of some positions and taps."""
    rows, shift, modulation = saved
    tile = _fitting(_SAMPLE, geo)
    columns = rows.new_empty((positions.stop - positions.start, (taps.stop - taps.start) * geo.C))
    sample_kernel[_grid(tile, positions, taps, geo)](
        rows,
        shift,
        modulation,
        columns,
        *_part(positions, taps),
        geo.C,
        **_options(tile, modulation, geo),
        BLOCK_C=tile.channels,
    )
    return columns


def _plan_grads(
    sums: Grads,
    saved: tuple[Tensor, Tensor, Tensor],
    grad_columns: Tensor,
    positions: slice,
    taps: slice,
    geo: Geometry,
) -> Tensor | None:
    """Write the gradients of offset and mask; the columns, if the kernel's gradient is going to need them."""
    rows, shift, modulation = saved
    tile = _fitting(_PLAN, geo)
    columns = torch.empty_like(grad_columns) if sums.weight is not None else None
    grad_offset, grad_mask = sums.offset, sums.mask
    plan_kernel[_grid(tile, positions, taps, geo)](
        rows,
        shift,
        modulation,
        grad_columns,
        grad_columns if columns is None else columns,
        grad_offset,
        grad_offset if grad_mask is None else grad_mask,
        *_part(positions, taps),
        geo.C,
        **_options(tile, modulation, geo),
        SAMPLING=columns is not None,
        BLOCK_C=tile.channels,
    )
    return columns


def _gather(
    grad_rows: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    grad_columns: Tensor,
    positions: slice,
    taps: slice,
    geo: Geometry,
) -> None:
    """Add the columns' gradients to those of the pixels that the columns were sampled from."""
    _, shift, modulation = saved
    pixels = geo.N * geo.H * geo.W * geo.G
    count = (positions.stop - positions.start) * (taps.stop - taps.start) * geo.G * 4
    read = shift.new_empty(count, dtype=torch.int32 if pixels < 2**31 else torch.int64)
    weights = shift.new_empty(count)
    corner_kernel[_grid(_CORNER, positions, taps, geo)](
        shift,
        modulation,
        read,
        weights,
        *_part(positions, taps),
        pixels,
        **_options(_CORNER, modulation, geo),
    )
    read, order = torch.sort(read, stable=True)
    wanted = torch.arange(pixels + 1, device=read.device, dtype=read.dtype)
    starts = torch.searchsorted(read, wanted, out_int32=count < 2**31)
    tile = _fitting(_GATHER, geo)
    per_group = geo.C // geo.G
    gather_kernel[(pixels, triton.cdiv(per_group, tile.channels))](
        grad_columns,
        order,
        weights,
        starts,
        grad_rows,
        per_group,
        ADDING=positions.start > 0 or taps.start > 0,
        BLOCK_E=tile.positions,
        BLOCK_C=tile.channels,
        num_warps=tile.warps,
    )


def _grid(tile: Tile, positions: slice, taps: slice, geo: Geometry) -> tuple[int, int, int]:
    """One program a block of positions, tap and deform group."""
    return triton.cdiv(positions.stop - positions.start, tile.positions), taps.stop - taps.start, geo.G


def _part(positions: slice, taps: slice) -> tuple[int, int, int, int]:
    """First and number of the positions, and of the taps."""
    return positions.start, positions.stop - positions.start, taps.start, taps.stop - taps.start


def _options(tile: Tile, modulation: Tensor, geo: Geometry) -> dict[str, Any]:
    """The arguments that all kernels share which look at positions and taps."""
    sizes: dict[str, Any] = {name: getattr(geo, name) for name in ('H', 'W', 'Ho', 'Wo', 'K', 'G')}
    sizes.update(sh=geo.stride_h, sw=geo.stride_w, ph=geo.pad_h, pw=geo.pad_w, dh=geo.dil_h, dw=geo.dil_w)
    options = {'KW': geo.kw, 'MASKED': modulation.dim() == 4, 'BLOCK_P': tile.positions, 'num_warps': tile.warps}
    return {**sizes, 'far': float(geo.farthest), **options}
