# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Deformable convolution with Triton kernels. Imported only when the backend is chosen; needs triton.

Forward: one kernel that gathers and multiplies on tensor cores (for a grouped convolution: columns, then a
batched product). Backward: columns and matrix products for the kernel's gradient, a matrix product and one fused
scatter for the others. The scatter adds atomically, so the input's gradient is not deterministic.

Tested in Triton's interpreter. Written with Hopper GPUs in mind; block sizes are not tuned on one yet.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..errors import UpgradeError
from . import matrices
from .chunks import cut
from .geometry import Geometry
from .passes import Grads, Saved, Wanted
from .triton_kernels import convolve_kernel, sample_kernel, scatter_kernel

INTERPRETED = os.environ.get('TRITON_INTERPRET', '0') == '1'  # the interpreter multiplies bfloat16 wrongly


class Blocks(NamedTuple):
    """Sizes of the tiles of one program."""

    positions: int
    channels: int
    outputs: int


def blocks(geo: Geometry, itemsize: int) -> Blocks:
    """Tiles that fill registers and shared memory of a large GPU; small problems get small tiles."""
    channels = min(triton.next_power_of_2(max(16, geo.C // geo.G)), 64 if itemsize == 2 else 32)
    outputs = min(triton.next_power_of_2(max(16, geo.O)), 256 if itemsize == 2 else 128)
    return Blocks(64, channels, outputs)


def forward(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geo: Geometry,
) -> tuple[Tensor, Saved]:
    """See :class:`.passes.Passes`."""
    rows = _fresh(matrices.map_to_rows(input, input.dtype).contiguous(), input)
    shift = _fresh(offset.to(torch.float32).contiguous(), offset)
    modulation = rows.new_empty(0, dtype=torch.float32)
    if mask is not None:
        modulation = _fresh(mask.to(torch.float32).contiguous(), mask)
    saved = (rows, shift, modulation)
    output = rows.new_empty((geo.N * geo.L, geo.O))
    if geo.groups == 1:
        _convolve(output, saved, weight, bias, geo)
    else:
        _convolve_groups(output, saved, matrices.dense(weight), bias, geo)
    return matrices.rows_to_map(output, geo, input.dtype, matrices.format_of(input)), saved


def _fresh(tensor: Tensor, source: Tensor) -> Tensor:
    """A copy if it shares memory with its source: what an operator returns must not be what it was given."""
    return tensor.clone() if tensor.data_ptr() == source.data_ptr() else tensor


def like_saved(input: Tensor, offset: Tensor, mask: Tensor | None, geo: Geometry) -> Saved:
    """See :class:`.passes.Passes`."""
    rows = input.new_empty((geo.N * geo.H * geo.W, geo.C))
    plan = [rows.new_empty((0,) if t is None else t.shape, dtype=torch.float32) for t in (offset, mask)]
    return rows, plan[0], plan[1]


def backward(saved: Saved, weight: Tensor, grad_output: Tensor, geo: Geometry, wanted: Wanted) -> Grads:
    """See :class:`.passes.Passes`."""
    if wanted.input and torch.are_deterministic_algorithms_enabled():
        raise UpgradeError(
            "backend 'triton' adds the gradient of the input atomically, which is not deterministic, and deterministic "
            "algorithms were asked for; use backend='eager', whose gradients are deterministic."
        )
    rows, shift, modulation = saved
    weight = matrices.dense(weight)
    grad_rows = matrices.map_to_rows(grad_output, weight.dtype)
    grad_input = torch.zeros_like(rows, dtype=torch.float32) if wanted.input else None
    grad_offset = torch.empty_like(shift) if wanted.plan else None
    grad_mask = torch.empty_like(modulation) if wanted.plan and modulation.dim() == 4 else None
    grad_weight = matrices.new_kernel_grad(weight, geo) if wanted.weight else None
    cuts = cut(geo, rows.itemsize, rows.device.type)
    for taps in cuts.taps:
        kernel = matrices.kernel_matrix(weight, taps, geo, weight.dtype)
        grad_kernel = None
        for positions in cuts.positions:
            part = grad_rows[positions]
            if grad_weight is not None:
                columns = _sample(saved, positions, taps, geo)
                grad_kernel = matrices.add_grad_kernel(grad_kernel, columns, part, geo)
                del columns  # before the gradients of the columns are made
            if wanted.input or wanted.plan:
                columns = matrices.grad_columns(part, kernel, geo).contiguous()
                _scatter(saved, columns, (grad_input, grad_offset, grad_mask), positions, taps, geo)
        if grad_weight is not None and grad_kernel is not None:
            matrices.store_kernel(grad_weight, grad_kernel, taps, geo)
    if grad_input is not None:
        grad_input = grad_input.view(geo.N, geo.H, geo.W, geo.C).permute(0, 3, 1, 2)
    return Grads(grad_input, grad_offset, grad_mask, grad_weight)


def _convolve(output: Tensor, saved: Saved, weight: Tensor, bias: Tensor | None, geo: Geometry) -> None:
    rows, shift, modulation = saved
    block = blocks(geo, rows.itemsize)
    kernel = weight.permute(2, 3, 1, 0).reshape(geo.K * geo.C, geo.O).contiguous()
    grid = (triton.cdiv(len(output), block.positions), triton.cdiv(geo.O, block.outputs))
    if not len(output):
        return
    convolve_kernel[grid](
        rows,
        shift,
        modulation,
        kernel,
        kernel if bias is None else bias.contiguous(),
        output,
        len(output),
        geo.C,
        geo.O,
        **_sizes(geo),
        MASKED=modulation.dim() == 4,
        BIASED=bias is not None,
        PRECISION='tf32' if matrices.tf32_allowed() else 'ieee',
        UPCAST=INTERPRETED and rows.dtype == torch.bfloat16,
        BLOCK_P=block.positions,
        BLOCK_C=block.channels,
        BLOCK_O=block.outputs,
        num_warps=8,
    )


def _convolve_groups(output: Tensor, saved: Saved, weight: Tensor, bias: Tensor | None, geo: Geometry) -> None:
    cuts = cut(geo, output.itemsize, output.device.type)
    total = torch.empty_like(output, dtype=torch.float32)
    for taps in cuts.taps:
        kernel = matrices.kernel_matrix(weight, taps, geo, weight.dtype)
        for positions in cuts.positions:
            columns = _sample(saved, positions, taps, geo)
            matrices.project(total[positions], columns, kernel, geo, first=taps.start == 0)
    output.copy_(total if bias is None else total + bias)


def _sample(saved: Saved, positions: slice, taps: slice, geo: Geometry) -> Tensor:
    """The columns (p, k*C) of some positions and taps."""
    rows, shift, modulation = saved
    block = blocks(geo, rows.itemsize)
    count, k = positions.stop - positions.start, taps.stop - taps.start
    columns = rows.new_empty((count, k * geo.C))
    sample_kernel[(triton.cdiv(count, block.positions), k, geo.G)](
        rows,
        shift,
        modulation,
        columns,
        positions.start,
        count,
        taps.start,
        k,
        geo.C,
        **_sizes(geo),
        MASKED=modulation.dim() == 4,
        BLOCK_P=block.positions,
        BLOCK_C=block.channels,
    )
    return columns


def _scatter(
    saved: Saved,
    grad_columns: Tensor,
    targets: tuple[Tensor | None, Tensor | None, Tensor | None],
    positions: slice,
    taps: slice,
    geo: Geometry,
) -> None:
    """Bring the columns' gradients to input, offset and mask, where there is a target."""
    rows, shift, modulation = saved
    block = blocks(geo, rows.itemsize)
    count, k = positions.stop - positions.start, taps.stop - taps.start
    scatter_kernel[(triton.cdiv(count, block.positions), k, geo.G)](
        rows,
        shift,
        modulation,
        grad_columns,
        *(rows if t is None else t for t in targets),
        positions.start,
        count,
        taps.start,
        k,
        geo.C,
        **_sizes(geo),
        MASKED=modulation.dim() == 4,
        TO_INPUT=targets[0] is not None,
        TO_PLAN=targets[1] is not None,
        BLOCK_P=block.positions,
        BLOCK_C=block.channels,
    )


def _sizes(geo: Geometry) -> dict[str, Any]:
    """The arguments that all kernels share."""
    sizes: dict[str, Any] = {name: getattr(geo, name) for name in ('H', 'W', 'Ho', 'Wo', 'K', 'G')}
    sizes.update(sh=geo.stride_h, sw=geo.stride_w, ph=geo.pad_h, pw=geo.pad_w, dh=geo.dil_h, dw=geo.dil_w)
    return {**sizes, 'far': float(geo.farthest), 'KW': geo.kw}
