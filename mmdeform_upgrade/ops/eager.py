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
from .chunks import Chunk, chunks
from .geometry import Geometry
from .sampling import Plan


def deform_conv2d(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, geo: Geometry
) -> Tensor:
    """Deformable convolution; see :func:`mmdeform_upgrade.ops.deform_conv2d`."""
    tensors = (input, offset, weight, bias, mask)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        output: Tensor = _DeformConv2d.apply(*tensors, geo)
        return output
    return forward(*tensors, geo)


class _DeformConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, geo: Geometry
    ) -> Tensor:
        ctx.save_for_backward(input, offset, weight, mask)
        ctx.geo = geo
        return forward(input, offset, weight, bias, mask, geo)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, offset, weight, mask = ctx.saved_tensors
        need_input, need_offset, need_weight, need_bias, need_mask, _ = ctx.needs_input_grad
        wanted = (need_input, need_offset or need_mask, need_weight)
        with torch.autocast(input.device.type, enabled=False):
            grads = backward(input, offset, weight, mask, grad_output, ctx.geo, wanted)
            grad_bias = grad_output.sum((0, 2, 3)) if need_bias else None
        return grads.input, grads.offset, grads.weight, grad_bias, grads.mask, None


class Grads(NamedTuple):
    """What the backward pass returns; None where it was not asked for."""

    input: Tensor | None
    offset: Tensor | None
    weight: Tensor | None
    mask: Tensor | None


def forward(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, geo: Geometry
) -> Tensor:
    """The output map, in the dtype and memory format of the input."""
    work = torch.promote_types(input.dtype, torch.float32)
    table = sampling.to_table(input, geo, work)
    plan = sampling.make_plan(offset, mask, geo, work)
    kernel = matrices.kernel_to_matrix(weight.to(work), geo)
    output = table.new_empty((geo.N * geo.L, geo.O))
    for chunk in chunks(geo, work.itemsize, input.device.type):
        corners = sampling.corners(plan.part(*chunk), geo)
        columns = _sample(table, corners, geo, chunk)
        taps = matrices.kernel_taps(kernel, chunk.taps, geo)
        matrices.project(output[chunk.positions], columns, taps, geo, first=chunk.taps.start == 0)
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
    wanted: tuple[bool, bool, bool],
) -> Grads:
    """Gradients of (input, offset and mask, weight), as ``wanted``."""
    need_input, need_plan, need_weight = wanted
    work = torch.promote_types(input.dtype, torch.float32)
    table = sampling.to_table(input, geo, work)
    plan = sampling.make_plan(offset, mask, geo, work)
    kernel = matrices.kernel_to_matrix(weight.to(work), geo)
    grad_rows = matrices.map_to_rows(grad_output, geo, work)
    grad_table = torch.zeros_like(table) if need_input else None
    grad_kernel = torch.zeros_like(kernel) if need_weight else None
    dots = table.new_empty((*plan.base.shape, 4)) if need_plan else None
    for chunk in chunks(geo, work.itemsize, input.device.type):
        grad_part = grad_rows[chunk.positions]
        corners = sampling.corners(plan.part(*chunk), geo)
        columns = None
        if grad_kernel is not None:
            columns = _sample(table, corners, geo, chunk)
            taps = matrices.kernel_taps(grad_kernel, chunk.taps, geo)
            matrices.grad_kernel(taps, columns, grad_part, geo, first=chunk.positions.start == 0)
        if grad_table is None and dots is None:
            continue
        columns = columns if columns is not None else table.new_empty(_column_shape(chunk, geo))
        matrices.grad_columns(columns, grad_part, matrices.kernel_taps(kernel, chunk.taps, geo), geo)
        if dots is not None:
            dots[chunk] = _corner_dots(table, corners, columns, geo).view(dots[chunk].shape)
        if grad_table is not None:
            _add_to_table(grad_table, corners, columns, chunk, geo)
    return _finish(grad_table, grad_kernel, dots, plan, (input, offset, weight, mask), geo)


def _finish(
    grad_table: Tensor | None,
    grad_kernel: Tensor | None,
    dots: Tensor | None,
    plan: Plan,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None],
    geo: Geometry,
) -> Grads:
    """Bring the gradients into the shapes, dtypes and memory format of the tensors they belong to."""
    input, offset, weight, mask = tensors
    grad_input = grad_offset = grad_weight = grad_mask = None
    if grad_table is not None:
        grad_input = sampling.from_table(grad_table, geo).to(input.dtype)
        grad_input = grad_input.contiguous(memory_format=matrices.format_of(input))
    if grad_kernel is not None:
        grad_weight = matrices.matrix_to_kernel(grad_kernel, geo).to(weight.dtype)
    if dots is not None:
        grad_offset, grad_mask = sampling.plan_gradients(plan, dots, geo)
        grad_offset = grad_offset.to(offset.dtype)
        grad_mask = None if mask is None or grad_mask is None else grad_mask.to(mask.dtype)
    return Grads(grad_input, grad_offset, grad_weight, grad_mask)


def _column_shape(chunk: Chunk, geo: Geometry) -> tuple[int, int]:
    return chunk.positions.stop - chunk.positions.start, (chunk.taps.stop - chunk.taps.start) * geo.C


def _sample(table: Tensor, corners: sampling.Corners, geo: Geometry, chunk: Chunk) -> Tensor:
    """The columns (p, k*C) of a chunk."""
    columns = F.embedding_bag(corners.rows, table, mode='sum', per_sample_weights=corners.weights)
    return columns.view(_column_shape(chunk, geo))


def _corner_dots(table: Tensor, corners: sampling.Corners, grad_columns: Tensor, geo: Geometry) -> Tensor:
    """For each sample, its column gradient times each of the four corner rows, (samples, 4)."""
    rows = corners.rows
    count = len(rows)
    like = {'device': rows.device, 'dtype': rows.dtype}
    starts = torch.arange(0, 4 * count, 4, **like)
    owner = torch.arange(count, **like).repeat_interleave(4)
    grad = grad_columns.view(count, geo.C // geo.G)
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(grad, table, rows.view(-1), starts, owner, 0)
    return dots.view(count, 4)


def _add_to_table(
    grad_table: Tensor, corners: sampling.Corners, grad_columns: Tensor, chunk: Chunk, geo: Geometry
) -> None:
    """Bring the columns' gradients to the pixels they came from: sort by pixel, then sum each segment."""
    span = sampling.table_span(chunk.images(geo), geo)
    pixels, order = torch.sort(corners.rows.view(-1), stable=True)
    weights = corners.weights.view(-1)[order]
    source = (order // 4).to(pixels.dtype)
    wanted = torch.arange(span.start, span.stop, device=pixels.device, dtype=pixels.dtype)
    starts = torch.searchsorted(pixels, wanted, out_int32=pixels.dtype == torch.int32)
    grad = grad_columns.view(-1, geo.C // geo.G)
    grad_table[span] += F.embedding_bag(source, grad, starts, mode='sum', per_sample_weights=weights)
