# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The sampling plan of plain PyTorch: which rows of a padded channels-last table, with which weights.

The input map becomes a table with one row of channels per pixel and deform group, with two zero columns after
each image row and two zero rows after each image. A corner up to two pixels outside the map then lands on
zeros, so no bounds have to be tested: pixels are clamped once and every index is valid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .geometry import Geometry
from .matrices import in_format, map_to_rows

BORDER = 2  # zero rows (columns) shared by neighbouring images (image rows)
LEAD = BORDER + 1  # zero rows before the first image, so that corner (-2, -2) exists


class Plan(NamedTuple):
    """Where every sample comes from; (N*L, K, G), or the samples of a part of that in one dimension."""

    base: Tensor  # int32 or int64: table row of the upper left corner
    interp: Tensor  # (2 or 3, ...): distances ly, lx from the upper left corner, in [0, 1); the mask if any

    def part(self, positions: slice, taps: slice) -> Plan:
        """The flat plan of some output positions and some taps."""
        return Plan(self.base[positions, taps].reshape(-1), self.interp[:, positions, taps].flatten(1))


def table_size(geo: Geometry) -> tuple[int, int]:
    """Rows of pixels, and pixels a row, of the padded table."""
    return LEAD + geo.N * (geo.H + BORDER), geo.W + BORDER


def to_table(input: Tensor, geo: Geometry, dtype: torch.dtype) -> Tensor:
    """The padded channels-last copy of the map, (rows * cols * G, C // G)."""
    rows, cols = table_size(geo)
    table = input.new_zeros((rows, cols, geo.C), dtype=dtype)
    _interior(table, geo).copy_(map_to_rows(input, dtype).view(geo.N, geo.H, geo.W, geo.C))
    return table.view(rows * cols * geo.G, geo.C // geo.G)


def from_table(table: Tensor, geo: Geometry, memory_format: torch.memory_format) -> Tensor:
    """The map (N, C, H, W) in a padded table."""
    rows, cols = table_size(geo)
    return in_format(_interior(table.view(rows, cols, geo.C), geo).permute(0, 3, 1, 2), table.dtype, memory_format)


def _interior(table: Tensor, geo: Geometry) -> Tensor:
    images = table[LEAD:].view(geo.N, geo.H + BORDER, geo.W + BORDER, geo.C)
    return images[:, : geo.H, : geo.W]


def make_plan(offset: Tensor, mask: Tensor | None, geo: Geometry, dtype: torch.dtype) -> Plan:
    """Turn offsets into table rows and weights.

    A tap's undeformed position is an integer, so its pixel and its fraction come from the offset alone: floor and
    difference are exact, nothing is rounded, whatever the size of the map.
    """
    coord = torch.promote_types(torch.promote_types(offset.dtype, torch.float32), dtype)
    shift = offset.reshape(geo.N, geo.G, geo.K, 2, geo.L).permute(3, 0, 4, 2, 1).to(coord)  # (2, N, L, K, G)
    shift = shift.clamp(-geo.farthest, geo.farthest)
    whole = shift.floor()
    parts = [(shift - whole).to(dtype)]
    if mask is not None:
        parts.append(mask.reshape(1, geo.N, geo.G, geo.K, geo.L).permute(0, 1, 4, 3, 2).to(dtype))
    base = _table_rows(whole.nan_to_num_(0.0), geo)
    interp = parts[0] if mask is None else torch.cat(parts)
    return Plan(base.reshape(geo.N * geo.L, geo.K, geo.G), interp.flatten(1, 2))


def _table_rows(whole: Tensor, geo: Geometry) -> Tensor:
    """Table rows (N, L, K, G) of the pixels that are ``whole`` (2, N, L, K, G) away from the undeformed ones."""
    rows, cols = table_size(geo)
    index, device = torch.int32 if rows * cols * geo.G < 2**31 else torch.int64, whole.device

    def steps(first: int, count: int, step: int, *shape: int) -> Tensor:
        return torch.arange(first, first + count * step, step, device=device, dtype=index).view(shape)

    tap_y = steps(-geo.pad_h, geo.Ho, geo.stride_h, -1, 1, 1, 1) + steps(0, geo.kh, geo.dil_h, -1, 1)
    tap_x = steps(-geo.pad_w, geo.Wo, geo.stride_w, -1, 1, 1) + steps(0, geo.kw, geo.dil_w, -1)
    grid = (geo.Ho, geo.Wo, geo.kh, geo.kw)
    y, x = (tap.expand(grid).reshape(geo.L, geo.K, 1) for tap in (tap_y, tap_x))
    y = whole[0].to(index).add_(y).clamp_(-BORDER, geo.H)
    x = whole[1].to(index).add_(x).clamp_(-BORDER, geo.W)
    base = y.mul_(cols).add_(x).add_(steps(LEAD * cols, geo.N, (geo.H + BORDER) * cols, -1, 1, 1, 1))
    return base if geo.G == 1 else base * geo.G + steps(0, geo.G, 1, -1)


class Corners(NamedTuple):
    """The four corners of each sample, both (samples, 4): upper left, upper right, lower left, lower right."""

    rows: Tensor  # table rows
    weights: Tensor  # interpolation weights, the modulation included


def corners(plan: Plan, geo: Geometry) -> Corners:
    """The corners of a flat plan."""
    cols = table_size(geo)[1]
    base = plan.base
    steps = torch.tensor([0, geo.G, cols * geo.G, (cols + 1) * geo.G], dtype=base.dtype, device=base.device)
    rows = base.unsqueeze(1) + steps
    ly, lx, *mask = plan.interp.unbind(0)
    upper, lower = 1 - ly, ly
    if mask:
        upper, lower = upper * mask[0], lower * mask[0]
    left = 1 - lx
    weights = torch.empty_like(rows, dtype=ly.dtype)
    for i, (by_y, by_x) in enumerate(((upper, left), (upper, lx), (lower, left), (lower, lx))):
        weights[:, i] = by_y * by_x  # stacking them takes twice as long
    return Corners(rows, weights)


def plan_gradients(plan: Plan, dots: Tensor, geo: Geometry) -> tuple[Tensor, Tensor | None]:
    """Gradients of offset and mask.

    Args:
        plan: The whole plan.
        dots: (4, N*L, K, G), the gradient of each sample's column times each of its corner rows.
        geo: The sizes.
    """
    ly, lx, *mask = plan.interp.unbind(0)
    d00, d01, d10, d11 = dots
    left, right = d01 - d00, d11 - d10
    top = d00 + left * lx
    grad_y, grad_x = d10 + right * lx - top, left + (right - left) * ly  # (N*L, K, G)
    grad_mask = None
    if mask:
        modulation = (top + grad_y * ly).view(geo.N, geo.L, geo.K, geo.G)
        grad_mask = modulation.permute(0, 3, 2, 1).reshape(geo.N, geo.G * geo.K, geo.Ho, geo.Wo)
        grad_y, grad_x = grad_y * mask[0], grad_x * mask[0]
    both = torch.stack((grad_y, grad_x)).view(2, geo.N, geo.L, geo.K, geo.G)
    grad_offset = both.permute(1, 4, 3, 0, 2).reshape(geo.N, 2 * geo.G * geo.K, geo.Ho, geo.Wo)
    return grad_offset, grad_mask
