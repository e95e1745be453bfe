# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Deformable convolution in plain PyTorch, for any device; written for speed on a CPU.

A sample is a weighted sum of four rows of a padded channels-last table, which is what ``embedding_bag``
computes, vectorised and in parallel, in one pass. Everything else is matrix products. Columns are never
saved: they are made again in the backward pass, chunk by chunk, within a byte budget. The input's gradient
is gathered through the sorted plan (no atomics, no scatter), so results are deterministic.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from . import matrices, passes, sampling
from .chunks import Cuts, cut
from .geometry import Geometry
from .passes import Grads, Operands, Wanted
from .sampling import Corners

with warnings.catch_warnings():  # PyTorch warns once that CSR tensors are in beta
    warnings.simplefilter('ignore')
    torch.sparse_csr_tensor([0], [], [], (0, 0), device='cpu', check_invariants=False)


def forward(operands: Operands, geo: Geometry) -> Tensor:
    """See :mod:`.passes`."""
    input, offset, weight, bias, mask = operands
    work = torch.promote_types(input.dtype, torch.float32)
    table = sampling.to_table(input, geo, work)
    plan = sampling.make_plan(offset, mask, geo, work)
    shape = (geo.N, geo.O, geo.Ho, geo.Wo)
    output = torch.empty(shape, dtype=work, device=input.device, memory_format=torch.channels_last)

    def sample(positions: slice, taps: slice) -> Tensor:
        return _sample(table, sampling.corners(plan.part(positions, taps), geo), taps, geo)

    rows, weight = matrices.map_to_rows(output, work), weight.to(matrices.product_dtype(weight))
    passes.project(sample, rows, weight, _cut(table, weight, geo, forward=True), geo)
    if bias is not None:
        output += bias.view(-1, 1, 1)
    return matrices.in_format(output, input.dtype, matrices.format_of(input))


def backward(grad_output: Tensor, operands: Operands, geo: Geometry, wanted: Wanted) -> Grads:
    """See :mod:`.passes`."""
    input, offset, weight, _, mask = operands
    work = torch.promote_types(input.dtype, torch.float32)
    table = sampling.to_table(input, geo, work)
    plan = sampling.make_plan(offset, mask, geo, work)
    grad_table = torch.zeros_like(table) if wanted.input else None
    dots = table.new_empty((4, *plan.base.shape)) if wanted.plan else None

    def step(positions: slice, taps: slice, grad_columns: Tensor | None) -> Tensor | None:
        corners = sampling.corners(plan.part(positions, taps), geo)
        if grad_columns is not None:
            grads = grad_columns.to(work).reshape(-1, geo.C // geo.G)
            if dots is not None:
                found = _corner_dots(table, corners, grads).view(-1, taps.stop - taps.start, geo.G, 4)
                dots[:, positions, taps].copy_(found.permute(3, 0, 1, 2))
            if grad_table is not None:
                _add_to_table(grad_table, corners, grads)
            del grads, grad_columns  # before the columns are made
        return _sample(table, corners, taps, geo) if wanted.weight else None

    weight = weight.to(matrices.product_dtype(weight))
    cuts = _cut(table, weight, geo, forward=False)
    grad_weight = passes.differentiate(step, grad_output, weight, wanted, cuts, geo)
    grad_input = None if grad_table is None else sampling.from_table(grad_table, geo, matrices.format_of(input))
    grad_offset, grad_mask = (None, None) if dots is None else sampling.plan_gradients(plan, dots, geo)
    return Grads(grad_input, grad_offset, grad_weight, grad_mask)


def _cut(table: Tensor, weight: Tensor, geo: Geometry, forward: bool) -> Cuts:
    """Pieces of the columns; all at once, and turned, where there are fewer of them than of a contiguous kernel."""
    if table.is_cpu:
        _keep_freed_memory()
    rows = geo.N * geo.L
    if geo.groups == 1 and 0 < rows <= geo.O and weight.is_contiguous():
        return Cuts([slice(0, geo.K)], [slice(0, rows)], turned=True)
    return cut(geo, table.itemsize, table.device.type, summed=forward)


@cache
def _keep_freed_memory() -> None:
    """Have glibc keep the memory of one piece for the next, which it would return to the kernel, page by page."""
    torch.empty(2**25 - 2**13, dtype=torch.uint8)  # it keeps twice the largest block freed so far, 32 MB at most


def _sample(table: Tensor, corners: Corners, taps: slice, geo: Geometry) -> Tensor:
    """The columns (p, k*C) of some taps."""
    columns = F.embedding_bag(corners.rows, table, mode='sum', per_sample_weights=corners.weights)
    return columns.view(-1, (taps.stop - taps.start) * geo.C)


def _corner_dots(table: Tensor, corners: Corners, grads: Tensor) -> Tensor:
    """For each sample, its gradient (samples, C/G) times each of the four corner rows, (samples * 4,)."""
    count, rows = len(grads), corners.rows.view(-1)
    starts = torch.arange(0, 4 * count + 1, 4, device=rows.device, dtype=rows.dtype)
    if rows.device.type == 'cpu':  # three times as fast
        size = (count, len(table))
        wanted = torch.sparse_csr_tensor(starts, rows, grads.new_zeros(4 * count), size, check_invariants=False)
        found = torch.sparse.sampled_addmm(wanted, grads, table.t(), beta=0.0)
        return found.values().clone()  # torch.compile cannot take a view of a sparse tensor across a graph break
    owner = torch.arange(count, device=rows.device, dtype=rows.dtype).repeat_interleave(4)
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(grads, table, rows, starts[:-1], owner, 0)
    return dots


def _add_to_table(grad_table: Tensor, corners: Corners, grads: Tensor) -> None:
    """Bring the samples' gradients to the pixels they came from: sort by pixel, then sum each segment."""
    pixels, order = torch.sort(corners.rows.view(-1), stable=True)
    weights = corners.weights.view(-1).index_select(0, order)
    source = order >> 2  # the sample that each corner belongs to
    if pixels.device.type == 'cpu':  # reading two values costs nothing there
        first, last = int(pixels[0]), int(pixels[-1])
        counts = torch.bincount(pixels - first)
        starts = counts.cumsum(0) - counts
    else:
        first, last = 0, len(grad_table) - 1
        starts = torch.searchsorted(pixels, torch.arange(last + 1, device=pixels.device, dtype=pixels.dtype))
    grad_table[first : last + 1] += F.embedding_bag(source, grads, starts, mode='sum', per_sample_weights=weights)
