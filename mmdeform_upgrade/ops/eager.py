# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Deformable convolution in plain PyTorch, for any device; written for speed on a CPU.

A sample is a weighted sum of four rows of a padded channels-last table, which is what ``embedding_bag``
computes, vectorised and in parallel, in one pass. Everything else is matrix products. Columns are never
saved: they are made again in the backward pass, chunk by chunk, within a byte budget. The input's gradient
is gathered through the sorted plan (no atomics, no scatter), so results are deterministic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import matrices, sampling
from .chunks import cut, images
from .geometry import Geometry
from .sampling import Corners


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geo: Geometry,
) -> Tensor:
    """Deformable convolution; see :func:`mmdeform_upgrade.ops.deform_conv2d`."""
    tensors = (input, offset, weight, bias, mask)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        output: Tensor = _DeformConv2d.apply(*tensors, geo)
        return output
    return forward(*tensors, geo)


class _DeformConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        input, offset, weight, _, mask, geo = args
        ctx.save_for_backward(input, offset, weight, mask)
        ctx.geo = geo
        return forward(*args)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, offset, weight, mask = ctx.saved_tensors
        need_input, need_offset, need_weight, need_bias, need_mask, _ = ctx.needs_input_grad
        wanted = Wanted(need_input, need_offset or need_mask, need_weight)
        with torch.autocast(input.device.type, enabled=False):
            grads = backward(input, offset, weight, mask, grad_output, ctx.geo, wanted)
            grad_bias = grad_output.sum((0, 2, 3)) if need_bias else None
        return grads.input, grads.offset, grads.weight, grad_bias, grads.mask, None


class Wanted(NamedTuple):
    """Which gradients the backward pass has to make."""

    input: bool
    plan: bool  # offset and mask
    weight: bool


class Grads(NamedTuple):
    """What the backward pass returns; None where it was not asked for."""

    input: Tensor | None
    offset: Tensor | None
    weight: Tensor | None
    mask: Tensor | None


def forward(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geo: Geometry,
) -> Tensor:
    """The output map, in the dtype and memory format of the input."""
    work = torch.promote_types(input.dtype, torch.float32)
    weight = matrices.dense(weight)
    table = sampling.to_table(input, geo, work)
    plan = sampling.make_plan(offset, mask, geo, work)
    output = table.new_empty((geo.N * geo.L, geo.O))
    cuts = cut(geo, work.itemsize, input.device.type)
    for taps in cuts.taps:
        kernel = matrices.kernel_matrix(weight, taps, geo, work)
        for positions in cuts.positions:
            columns = _sample(table, sampling.corners(plan.part(positions, taps), geo), taps, geo)
            matrices.project(output[positions], columns, kernel, geo, first=taps.start == 0)
    if bias is not None:
        output += bias
    return matrices.rows_to_map(output, geo, like=input)


def backward(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    grad_output: Tensor,
    geo: Geometry,
    wanted: Wanted,
) -> Grads:
    """The gradients that are ``wanted``, in the dtypes and memory formats of what they belong to."""
    work = torch.promote_types(input.dtype, torch.float32)
    weight = matrices.dense(weight)
    table = sampling.to_table(input, geo, work)
    plan = sampling.make_plan(offset, mask, geo, work)
    rows = matrices.map_to_rows(grad_output, geo, work)
    sums = Sums(
        torch.zeros_like(table) if wanted.input else None,
        table.new_empty((*plan.base.shape, 4)) if wanted.plan else None,
        torch.empty_like(weight) if wanted.weight else None,
    )
    cuts = cut(geo, work.itemsize, input.device.type)
    for taps in cuts.taps:
        kernel = matrices.kernel_matrix(weight, taps, geo, work)
        grad_kernel = torch.zeros_like(kernel) if sums.weight is not None else None
        for positions in cuts.positions:
            corners = sampling.corners(plan.part(positions, taps), geo)
            if grad_kernel is not None:
                columns = _sample(table, corners, taps, geo)
                matrices.add_grad_kernel(grad_kernel, columns, rows[positions], geo)
            _add_sample_grads(sums, table, corners, rows[positions], kernel, positions, taps, geo)
        if sums.weight is not None and grad_kernel is not None:
            matrices.store_kernel(sums.weight, grad_kernel, taps, geo)
    return _finish(sums, plan, input, offset, mask, geo)


class Sums(NamedTuple):
    """Results of the backward pass while they are being filled in."""

    table: Tensor | None  # like the table
    dots: Tensor | None  # (N*L, K, G, 4): each sample's gradient times each of its corner rows
    weight: Tensor | None  # like the weight


def _add_sample_grads(
    sums: Sums,
    table: Tensor,
    corners: Corners,
    grad_rows: Tensor,
    kernel: Tensor,
    positions: slice,
    taps: slice,
    geo: Geometry,
) -> None:
    """Bring the gradient of some samples to the input and to the coordinates."""
    if sums.table is None and sums.dots is None:
        return
    columns = matrices.grad_columns(grad_rows, kernel, geo).reshape(-1, geo.C // geo.G)
    if sums.dots is not None:
        target = sums.dots[positions, taps]
        target.copy_(_corner_dots(table, corners, columns).view(target.shape))
    if sums.table is not None:
        _add_to_table(sums.table, corners, columns, sampling.table_span(images(positions, geo), geo))


def _finish(sums: Sums, plan: sampling.Plan, input: Tensor, offset: Tensor, mask: Tensor | None, geo: Geometry) -> Grads:
    grad_input = grad_offset = grad_mask = None
    if sums.table is not None:
        grad_input = sampling.from_table(sums.table, geo).to(input.dtype)
        grad_input = grad_input.contiguous(memory_format=matrices.format_of(input))
    if sums.dots is not None:
        grad_offset, grad_mask = sampling.plan_gradients(plan, sums.dots, geo)
        grad_offset = grad_offset.to(offset.dtype)
        grad_mask = None if mask is None or grad_mask is None else grad_mask.to(mask.dtype)
    return Grads(grad_input, grad_offset, sums.weight, grad_mask)


def _sample(table: Tensor, corners: Corners, taps: slice, geo: Geometry) -> Tensor:
    """The columns (p, k*C) of some taps."""
    columns = F.embedding_bag(corners.rows, table, mode='sum', per_sample_weights=corners.weights)
    return columns.view(-1, (taps.stop - taps.start) * geo.C)


def _corner_dots(table: Tensor, corners: Corners, grads: Tensor) -> Tensor:
    """For each sample, its gradient (samples, C/G) times each of the four corner rows, (samples * 4,)."""
    count = len(grads)
    like = {'device': grads.device, 'dtype': corners.rows.dtype}
    starts = torch.arange(0, 4 * count, 4, **like)
    owner = torch.arange(count, **like).repeat_interleave(4)
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grads, table, corners.rows.view(-1), starts, owner, 0
    )
    return dots


def _add_to_table(grad_table: Tensor, corners: Corners, grads: Tensor, span: slice) -> None:
    """Bring the samples' gradients to the pixels they came from: sort by pixel, then sum each segment."""
    pixels, order = torch.sort(corners.rows.view(-1), stable=True)
    weights = corners.weights.view(-1)[order]
    source = (order // 4).to(pixels.dtype)
    if pixels.device.type == 'cpu':  # reading two values costs nothing there
        span = slice(int(pixels[0]), int(pixels[-1]) + 1)
    wanted = torch.arange(span.start, span.stop, device=pixels.device, dtype=pixels.dtype)
    starts = torch.searchsorted(pixels, wanted, out_int32=pixels.dtype == torch.int32)
    grad_table[span] += F.embedding_bag(source, grads, starts, mode='sum', per_sample_weights=weights)
