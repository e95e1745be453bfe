# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Deformable convolution in plain PyTorch, for any device; written for speed on a CPU.

A sample is a weighted sum of four rows of a padded channels-last table, which is what ``embedding_bag``
computes, vectorised and in parallel, in one pass. Everything else is matrix products. Columns are never
saved: they are made again in the backward pass, chunk by chunk, within a byte budget. The input's gradient
is gathered through the sorted plan (no atomics, no scatter), so results are deterministic.

These two functions know nothing of autograd; ``autograd.py`` does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import matrices, sampling
from .chunks import cut, images
from .geometry import Geometry
from .passes import Grads, Wanted
from .sampling import Corners, Plan


def forward(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, geo: Geometry
) -> Tensor:
    """See :class:`.passes.Passes`."""
    work = torch.promote_types(input.dtype, torch.float32)
    weight = matrices.dense(weight)
    table = sampling.to_table(input, geo, work)
    plan = sampling.make_plan(offset, mask, geo, work)
    output = table.new_empty((geo.N * geo.L, geo.O))
    cuts = cut(geo, work.itemsize, input.device.type)
    for taps in cuts.taps:
        kernel = matrices.kernel_matrix(weight, taps, geo, matrices.product_dtype(weight))
        for positions in cuts.positions:
            columns = _sample(table, sampling.corners(plan.part(positions, taps), geo), taps, geo)
            matrices.project(output[positions], columns, kernel, geo, first=taps.start == 0)
    if bias is not None:
        output += bias
    return matrices.rows_to_map(output, geo, input.dtype, matrices.format_of(input))


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
    work = torch.promote_types(input.dtype, torch.float32)
    weight = matrices.dense(weight)
    product = matrices.product_dtype(weight)
    table = sampling.to_table(input, geo, work)
    plan = sampling.make_plan(offset, mask, geo, work)
    rows = matrices.map_to_rows(grad_output, product)
    turned = grad_output.to(product).transpose(0, 1).reshape(geo.O, -1)  # as contiguous as products like it
    sums = Sums(
        torch.zeros_like(table) if wanted.input else None,
        table.new_empty((*plan.base.shape, 4)) if wanted.plan else None,
        matrices.new_kernel_grad(weight, geo) if wanted.weight else None,
    )
    cuts = cut(geo, table.itemsize, table.device.type)
    for taps in cuts.taps:
        kernel = grad_kernel = None
        for positions in cuts.positions:
            corners = sampling.corners(plan.part(positions, taps), geo)
            if sums.weight is not None:
                columns = _sample(table, corners, taps, geo)
                grad_kernel = matrices.add_grad_kernel(grad_kernel, columns, turned[:, positions], geo)
                del columns  # before the gradients of the columns are made
                if positions is cuts.positions[-1]:
                    matrices.store_kernel(sums.weight, grad_kernel, taps, geo)
                    grad_kernel = None
            if sums.table is not None or sums.dots is not None:
                kernel = matrices.kernel_matrix(weight, taps, geo, product) if kernel is None else kernel
                _add_sample_grads(sums, table, corners, rows[positions], kernel, positions, taps, geo)
    return _finish(sums, plan, geo)


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
    columns = matrices.grad_columns(grad_rows, kernel, geo).to(table.dtype)
    columns = columns.reshape(-1, geo.C // geo.G)
    if sums.dots is not None:
        target = sums.dots[positions, taps]
        target.copy_(_corner_dots(table, corners, columns).view(target.shape))
    if sums.table is not None:
        _add_to_table(sums.table, corners, columns, sampling.table_span(images(positions, geo), geo))


def _finish(sums: Sums, plan: Plan, geo: Geometry) -> Grads:
    grad_input = None if sums.table is None else sampling.from_table(sums.table, geo)
    grad_offset = grad_mask = None
    if sums.dots is not None:
        grad_offset, grad_mask = sampling.plan_gradients(plan, sums.dots, geo)
    return Grads(grad_input, grad_offset, sums.weight, grad_mask)


def _sample(table: Tensor, corners: Corners, taps: slice, geo: Geometry) -> Tensor:
    """The columns (p, k*C) of some taps."""
    columns = F.embedding_bag(corners.rows, table, mode='sum', per_sample_weights=corners.weights)
    return columns.view(-1, (taps.stop - taps.start) * geo.C)


def _corner_dots(table: Tensor, corners: Corners, grads: Tensor) -> Tensor:
    """For each sample, its gradient (samples, C/G) times each of the four corner rows, (samples * 4,)."""
    count = len(grads)
    rows = corners.rows.view(-1)
    starts = torch.arange(0, 4 * count, 4, device=rows.device, dtype=rows.dtype)
    owner = torch.arange(count, device=rows.device, dtype=rows.dtype).repeat_interleave(4)
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(grads, table, rows, starts, owner, 0)
    return dots


def _add_to_table(grad_table: Tensor, corners: Corners, grads: Tensor, span: slice) -> None:
    """Bring the samples' gradients to the pixels they came from: sort by pixel, then sum each segment."""
    pixels, order = torch.sort(corners.rows.view(-1), stable=True)
    weights = corners.weights.view(-1).index_select(0, order)
    source = order.to(pixels.dtype) >> 2  # the sample that each corner belongs to
    if pixels.device.type == 'cpu':  # reading two values costs nothing there
        span = slice(int(pixels[0]), int(pixels[-1]) + 1)
        counts = torch.bincount(pixels - span.start)
        starts = (counts.cumsum(0) - counts).to(pixels.dtype)
    else:
        wanted = torch.arange(span.start, span.stop, device=pixels.device, dtype=pixels.dtype)
        starts = torch.searchsorted(pixels, wanted, out_int32=pixels.dtype == torch.int32)
    grad_table[span] += F.embedding_bag(source, grads, starts, mode='sum', per_sample_weights=weights)
