# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The specification: slow, obvious, built of differentiable PyTorch operations alone.

Every other backend is tested against this file. A sample is the bilinear interpolation of the input map
extended by zeros to the infinite plane. The weights of its four corners come from ``floor``, so where the
interpolant has a kink (integer coordinates) its derivative is the one from the right, everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .geometry import Geometry


def deform_conv2d(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, geo: Geometry
) -> Tensor:
    """Deformable convolution as it is written in the paper: sample, modulate, contract."""
    work = torch.promote_types(input.dtype, torch.float32)
    points = sample_points(offset.to(torch.promote_types(work, offset.dtype)), geo)
    samples = bilinear(input.to(work), points, geo)  # (N, C, K, L)
    if mask is not None:
        m = mask.to(work).reshape(geo.N, geo.G, 1, geo.K, geo.L)
        samples = (samples.reshape(geo.N, geo.G, geo.C // geo.G, geo.K, geo.L) * m).reshape(samples.shape)
    samples = samples.reshape(geo.N, geo.groups, geo.C // geo.groups, geo.K, geo.L)
    w = weight.to(work).reshape(geo.groups, geo.O // geo.groups, geo.C // geo.groups, geo.K)
    output = torch.einsum('ngckl,gock->ngol', samples, w).reshape(geo.N, geo.O, geo.Ho, geo.Wo)
    if bias is not None:
        output = output + bias.to(work).view(1, -1, 1, 1)
    return output.to(input.dtype)


class Points(NamedTuple):
    """Where each tap looks: the pixel to its upper left, and how far it is from that; (N, G, K, L)."""

    y0: Tensor
    x0: Tensor
    ly: Tensor  # in [0, 1); the gradients of the offsets arrive here
    lx: Tensor


def sample_points(offset: Tensor, geo: Geometry) -> Points:
    """Where each tap looks.

    Without its offset a tap is on a pixel, so the offset alone says how far it is from one: nothing is rounded,
    however large the map. A NaN offset moves the tap to no other pixel; its distance is NaN.
    """
    shift = offset.reshape(geo.N, geo.G, geo.K, 2, geo.L)
    rows = _grid(geo.Ho, geo.stride_h, offset) - geo.pad_h
    cols = _grid(geo.Wo, geo.stride_w, offset) - geo.pad_w
    tap_rows, tap_cols = _grid(geo.kh, geo.dil_h, offset), _grid(geo.kw, geo.dil_w, offset)
    shape = (geo.kh, geo.kw, geo.Ho, geo.Wo)
    base_y = (tap_rows.view(-1, 1, 1, 1) + rows.view(1, 1, -1, 1)).expand(shape).reshape(geo.K, geo.L)
    base_x = (tap_cols.view(1, -1, 1, 1) + cols.view(1, 1, 1, -1)).expand(shape).reshape(geo.K, geo.L)
    dy, dx = shift[:, :, :, 0], shift[:, :, :, 1]
    whole_y, whole_x = (_without_nan(d.floor().detach()) for d in (dy, dx))
    return Points(base_y + whole_y, base_x + whole_x, dy - whole_y, dx - whole_x)


def _without_nan(whole: Tensor) -> Tensor:
    return torch.where(whole.isnan(), 0.0, whole)


def _grid(count: int, step: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device) * step


def bilinear(input: Tensor, points: Points, geo: Geometry) -> Tensor:
    """Samples (N, C, K, L) of the zero-extended map.

    Far outside the map, infinity included, the sample is 0. A NaN coordinate gives a NaN sample.
    """
    y0, x0, ly, lx = points
    outside = (y0 < -1) | (y0 >= geo.H) | (x0 < -1) | (x0 >= geo.W)
    # An infinite offset is outside, and no distance from anything.
    ly, lx = (torch.where(p.isinf(), 0.0, d).to(input.dtype) for p, d in ((y0, ly), (x0, lx)))
    total = torch.zeros((), dtype=input.dtype, device=input.device)
    for row, wy in ((y0, 1 - ly), (y0 + 1, ly)):
        for col, wx in ((x0, 1 - lx), (x0 + 1, lx)):
            inside = (row >= 0) & (row < geo.H) & (col >= 0) & (col < geo.W)
            corner = torch.where((inside & ~outside).unsqueeze(2), _pixels(input, row, col, geo), 0.0)
            total = total + corner * (wy * wx).unsqueeze(2)  # (N, G, C/G, K, L)
    return total.reshape(geo.N, geo.C, geo.K, geo.L)


def _pixels(input: Tensor, row: Tensor, col: Tensor, geo: Geometry) -> Tensor:
    """Values (N, G, C/G, K, L) at integer coordinates, clamped into the map."""
    row, col = row.clamp(0, geo.H - 1).long(), col.clamp(0, geo.W - 1).long()
    index = (row * geo.W + col).reshape(geo.N, geo.G, 1, geo.K * geo.L)
    flat = input.reshape(geo.N, geo.G, geo.C // geo.G, geo.H * geo.W)
    picked = flat.gather(3, index.expand(-1, -1, geo.C // geo.G, -1))
    return picked.reshape(geo.N, geo.G, geo.C // geo.G, geo.K, geo.L)
