# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Deformable convolution in plain PyTorch, for any device; written for speed on a CPU.

Sampling is a weighted sum of four rows of a padded channels-last table, which is what ``embedding_bag``
computes, vectorised and in parallel, in one pass. Everything else is matrix products. Columns are never
saved: they are made again in the backward pass, chunk by chunk, within a byte budget. The input's gradient
is gathered through the sorted plan (no atomics, no scatter), so results are deterministic.
"""

from typing import Iterator, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import sampling
from .geometry import Geometry
from .sampling import Plan

COLUMN_BYTES = 16 * 2**20  # columns alive at a time, unless one output position needs more


def deform_conv2d(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Optional[Tensor], mask: Optional[Tensor], geo: Geometry
) -> Tensor:
    """Deformable convolution; see :func:`mmdeform_upgrade.ops.deform_conv2d`."""
    tensors = (input, offset, weight, bias, mask)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _DeformConv2d.apply(*tensors, geo)
    return _forward(*tensors, geo)


class _DeformConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, offset, weight, bias, mask, geo):
        ctx.save_for_backward(input, offset, weight, mask)
        ctx.geo = geo
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _forward(input, offset, weight, bias, mask, geo)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        input, offset, weight, mask = ctx.saved_tensors
        needs = ctx.needs_input_grad
        with torch.autocast(input.device.type, enabled=False):
            grads = _backward(input, offset, weight, mask, grad_output, ctx.geo, needs)
        grad_bias = grad_output.sum((0, 2, 3), dtype=ctx.bias_dtype) if needs[3] else None
        return grads.input, grads.offset, grads.weight, grad_bias, grads.mask, None


class Grads(NamedTuple):
    """What the backward pass returns; None where it was not asked for."""

    input: Optional[Tensor]
    offset: Optional[Tensor]
    weight: Optional[Tensor]
    mask: Optional[Tensor]


class Chunk(NamedTuple):
    """Output positions ``l0:l1`` of images ``n0:n1``; whole images when there are several."""

    n0: int
    n1: int
    l0: int
    l1: int

    def samples(self, geo: Geometry) -> slice:
        """Their range in a plan, whose order is (N, L, K, G)."""
        taps = geo.K * geo.G
        return slice((self.n0 * geo.L + self.l0) * taps, ((self.n1 - 1) * geo.L + self.l1) * taps)


def chunks(geo: Geometry, itemsize: int) -> Iterator[Chunk]:
    """Split the output so that the columns of one chunk take at most ``COLUMN_BYTES``."""
    positions = max(1, COLUMN_BYTES // (geo.K * geo.C * itemsize))
    if positions >= geo.L:
        images = positions // geo.L
        for n in range(0, geo.N, images):
            yield Chunk(n, min(n + images, geo.N), 0, geo.L)
        return
    parts = -(-geo.L // positions)
    step = -(-geo.L // parts)
    for n in range(geo.N):
        for start in range(0, geo.L, step):
            yield Chunk(n, n + 1, start, min(start + step, geo.L))


def _forward(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Optional[Tensor], mask: Optional[Tensor], geo: Geometry
) -> Tensor:
    work = torch.promote_types(input.dtype, torch.float32)
    table = sampling.to_table(input, geo, work)
    plan = sampling.make_plan(offset, mask, geo, work)
    kernel = _kernel_matrix(weight.to(work), geo)
    output = torch.empty(
        (geo.N, geo.O, geo.Ho, geo.Wo), dtype=work, device=input.device, memory_format=_format_of(input)
    )
    matrix = _as_matrix(output, geo)
    for chunk in chunks(geo, work.itemsize):
        columns = _sample(table, _part(plan, chunk, geo), geo)
        for n, rows in _images(columns, chunk, geo):
            _project(rows, kernel, matrix[n, chunk.l0 : chunk.l1], geo)
    if bias is not None:
        output += bias.view(1, -1, 1, 1)
    return output.to(input.dtype)


def _backward(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Optional[Tensor],
    grad_output: Tensor,
    geo: Geometry,
    needs: Tuple[bool, ...],
) -> Grads:
    work = torch.promote_types(input.dtype, torch.float32)
    table = sampling.to_table(input, geo, work)
    plan = sampling.make_plan(offset, mask, geo, work)
    kernel = _kernel_matrix(weight.to(work), geo)
    grad_matrix = _as_matrix(grad_output.to(work), geo)
    need_input, need_plan, need_weight = needs[0], needs[1] or needs[4], needs[2]
    grad_table = torch.zeros_like(table) if need_input else None
    grad_kernel = torch.zeros_like(kernel) if need_weight else None
    dots = table.new_empty((plan.base.numel(), 4)) if need_plan else None
    for chunk in chunks(geo, work.itemsize):
        part = _part(plan, chunk, geo)
        if grad_kernel is not None:
            columns = _sample(table, part, geo)
            for n, rows in _images(columns, chunk, geo):
                _accumulate_kernel(grad_kernel, grad_matrix[n, chunk.l0 : chunk.l1], rows, geo)
            del columns
        if grad_table is None and dots is None:
            continue
        grad_columns = _grad_columns(grad_matrix, kernel, chunk, geo)
        if dots is not None:
            dots[chunk.samples(geo)] = _corner_dots(table, part, grad_columns, geo)
        if grad_table is not None:
            _scatter(grad_table, part, grad_columns, chunk, geo)
    return _finish(grad_table, grad_kernel, dots, plan, (input, offset, weight, mask), geo)


def _finish(
    grad_table: Optional[Tensor],
    grad_kernel: Optional[Tensor],
    dots: Optional[Tensor],
    plan: Plan,
    tensors: Tuple[Tensor, Tensor, Tensor, Optional[Tensor]],
    geo: Geometry,
) -> Grads:
    """Bring the gradients into the shapes, dtypes and memory format of the tensors they belong to."""
    input, offset, weight, mask = tensors
    grad_input = grad_offset = grad_weight = grad_mask = None
    if grad_table is not None:
        grad_input = sampling.from_table(grad_table, geo).to(input.dtype).contiguous(memory_format=_format_of(input))
    if grad_kernel is not None:
        grad_weight = _kernel_tensor(grad_kernel, geo).to(weight.dtype)
    if dots is not None:
        y, x, m = sampling.plan_gradients(plan, dots)
        order = (geo.N, geo.L, geo.K, geo.G)
        both = torch.stack((y.view(order), x.view(order)))  # (2, N, L, K, G)
        grad_offset = both.permute(1, 4, 3, 0, 2).reshape(offset.shape).to(offset.dtype)
        if m is not None and mask is not None:
            grad_mask = m.view(order).permute(0, 3, 2, 1).reshape(mask.shape).to(mask.dtype)
    return Grads(grad_input, grad_offset, grad_weight, grad_mask)


def _part(plan: Plan, chunk: Chunk, geo: Geometry) -> Plan:
    span = chunk.samples(geo)
    return Plan(*(None if t is None else t[span] for t in plan))


def _sample(table: Tensor, plan: Plan, geo: Geometry) -> Tensor:
    """Columns (n*L, K*C) of a part of the plan."""
    rows = sampling.corner_rows(plan.base, geo)
    columns = F.embedding_bag(rows, table, mode='sum', per_sample_weights=sampling.corner_weights(plan))
    return columns.view(-1, geo.K * geo.C)


def _corner_dots(table: Tensor, plan: Plan, grad_columns: Tensor, geo: Geometry) -> Tensor:
    """For each sample, its column gradient times each of the four corner rows, (B, 4)."""
    rows = sampling.corner_rows(plan.base, geo)
    count = rows.shape[0]
    starts = torch.arange(0, 4 * count, 4, device=rows.device, dtype=rows.dtype)
    owner = torch.arange(count, device=rows.device, dtype=rows.dtype).repeat_interleave(4)
    grad = grad_columns.view(count, geo.C // geo.G)
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(grad, table, rows.view(-1), starts, owner, 0)
    return dots.view(count, 4)


def _scatter(grad_table: Tensor, plan: Plan, grad_columns: Tensor, chunk: Chunk, geo: Geometry) -> None:
    """Add the columns' gradients to the table's, as a gather: sort by destination, sum each segment."""
    _, cols = sampling.table_size(geo)
    first = chunk.n0 * (geo.H + sampling.BORDER) * cols * geo.G
    last = (sampling.LEAD + chunk.n1 * (geo.H + sampling.BORDER)) * cols * geo.G
    rows = sampling.corner_rows(plan.base, geo).view(-1)
    target, order = torch.sort(rows, stable=True)
    weights = sampling.corner_weights(plan).view(-1)[order]
    source = (order // 4).to(rows.dtype)
    wanted = torch.arange(first, last, device=rows.device, dtype=rows.dtype)
    starts = torch.searchsorted(target, wanted, out_int32=rows.dtype == torch.int32)
    grad = grad_columns.view(-1, geo.C // geo.G)
    grad_table[first:last] += F.embedding_bag(source, grad, starts, mode='sum', per_sample_weights=weights)


def _kernel_matrix(weight: Tensor, geo: Geometry) -> Tensor:
    """The kernel as (groups, K * C/groups, O/groups) matrices, in the order of a column."""
    w = weight.reshape(geo.groups, geo.O // geo.groups, geo.C // geo.groups, geo.K)
    return w.permute(0, 3, 2, 1).reshape(geo.groups, -1, geo.O // geo.groups)


def _kernel_tensor(matrix: Tensor, geo: Geometry) -> Tensor:
    w = matrix.view(geo.groups, geo.K, geo.C // geo.groups, geo.O // geo.groups)
    return w.permute(0, 3, 2, 1).reshape(geo.O, geo.C // geo.groups, geo.kh, geo.kw)


def _group_columns(rows: Tensor, geo: Geometry) -> Tensor:
    """Columns (l, K*C) as one matrix per convolution group, (groups, l, K*C/groups)."""
    split = rows.view(-1, geo.K, geo.groups, geo.C // geo.groups)
    return split.permute(2, 0, 1, 3).reshape(geo.groups, rows.shape[0], -1)


def _group_outputs(rows: Tensor, geo: Geometry) -> Tensor:
    """(l, O) as (groups, l, O/groups); a view."""
    return rows.unflatten(1, (geo.groups, -1)).permute(1, 0, 2)


def _project(rows: Tensor, kernel: Tensor, out: Tensor, geo: Geometry) -> None:
    """Columns (l, K*C) times the kernel into ``out`` (l, O), which may be a transposed view."""
    if geo.groups == 1:
        torch.mm(rows, kernel[0], out=out)
    else:
        _group_outputs(out, geo).copy_(torch.bmm(_group_columns(rows, geo), kernel))


def _accumulate_kernel(grad_kernel: Tensor, grad_out: Tensor, rows: Tensor, geo: Geometry) -> None:
    if geo.groups == 1:
        grad_kernel[0].addmm_(rows.t(), grad_out)
    else:
        columns = _group_columns(rows, geo).transpose(1, 2)
        grad_kernel.baddbmm_(columns, _group_outputs(grad_out, geo))


def _grad_columns(grad_matrix: Tensor, kernel: Tensor, chunk: Chunk, geo: Geometry) -> Tensor:
    """Gradient of the columns, (n*l, K*C)."""
    length = chunk.l1 - chunk.l0
    grad = grad_matrix.new_empty(((chunk.n1 - chunk.n0) * length, geo.K * geo.C))
    for n, rows in _images(grad, chunk, geo):
        grad_out = grad_matrix[n, chunk.l0 : chunk.l1]
        if geo.groups == 1:
            torch.mm(grad_out, kernel[0].t(), out=rows)
            continue
        grouped = torch.bmm(_group_outputs(grad_out, geo), kernel.transpose(1, 2))
        split = grouped.view(geo.groups, length, geo.K, geo.C // geo.groups)
        rows.view(length, geo.K, geo.groups, -1).copy_(split.permute(1, 2, 0, 3))
    return grad


def _images(columns: Tensor, chunk: Chunk, geo: Geometry) -> Iterator[Tuple[int, Tensor]]:
    """Each image of a chunk with its rows of the columns."""
    length = chunk.l1 - chunk.l0
    for i, n in enumerate(range(chunk.n0, chunk.n1)):
        yield n, columns[i * length : (i + 1) * length]


def _format_of(tensor: Tensor) -> torch.memory_format:
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not tensor.is_contiguous() else torch.contiguous_format


def _as_matrix(tensor: Tensor, geo: Geometry) -> Tensor:
    """A map (N, O, Ho, Wo) as (N, L, O); a view if it is contiguous in either memory format."""
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1).view(geo.N, geo.L, geo.O)
    return tensor.contiguous().view(geo.N, geo.O, geo.L).transpose(1, 2)
