# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The specification: slow, obvious, built of differentiable PyTorch operations alone.

Every other backend is tested against this file. A sample is the bilinear interpolation of the input map
extended by zeros to the infinite plane. The weights of its four corners come from ``floor``, so where the
interpolant has a kink (integer coordinates) its derivative is the one from the right, everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import Geometry


def deform_conv2d(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, geo: Geometry
) -> Tensor:
    """Deformable convolution as it is written in the paper: sample, modulate, contract."""
    work = torch.promote_types(input.dtype, torch.float32)
    y, x = sample_points(offset.to(torch.promote_types(work, offset.dtype)), geo)
    samples = bilinear(input.to(work), y, x, geo)  # (N, C, K, L)
    if mask is not None:
        m = mask.to(work).reshape(geo.N, geo.G, 1, geo.K, geo.L)
        samples = (samples.reshape(geo.N, geo.G, geo.C // geo.G, geo.K, geo.L) * m).reshape(samples.shape)
    samples = samples.reshape(geo.N, geo.groups, geo.C // geo.groups, geo.K, geo.L)
    w = weight.to(work).reshape(geo.groups, geo.O // geo.groups, geo.C // geo.groups, geo.K)
    output = torch.einsum('ngckl,gock->ngol', samples, w).reshape(geo.N, geo.O, geo.Ho, geo.Wo)
    if bias is not None:
        output = output + bias.to(work).view(1, -1, 1, 1)
    return output.to(input.dtype)


def sample_points(offset: Tensor, geo: Geometry) -> tuple[Tensor, Tensor]:
    """Where each tap looks: row and column coordinates, both (N, G, K, L), in input pixels."""
    shift = offset.reshape(geo.N, geo.G, geo.K, 2, geo.L)
    rows = _grid(geo.Ho, geo.stride_h, offset) - geo.pad_h
    cols = _grid(geo.Wo, geo.stride_w, offset) - geo.pad_w
    tap_rows, tap_cols = _grid(geo.kh, geo.dil_h, offset), _grid(geo.kw, geo.dil_w, offset)
    shape = (geo.kh, geo.kw, geo.Ho, geo.Wo)
    base_y = (tap_rows.view(-1, 1, 1, 1) + rows.view(1, 1, -1, 1)).expand(shape).reshape(geo.K, geo.L)
    base_x = (tap_cols.view(1, -1, 1, 1) + cols.view(1, 1, 1, -1)).expand(shape).reshape(geo.K, geo.L)
    return base_y + shift[:, :, :, 0], base_x + shift[:, :, :, 1]


def _grid(count: int, step: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device) * step


def bilinear(input: Tensor, y: Tensor, x: Tensor, geo: Geometry) -> Tensor:
    """Samples (N, C, K, L) of the zero-extended map at coordinates (N, G, K, L).

    Far outside the map, infinity included, the sample is 0. A NaN coordinate gives a NaN sample.
    """
    outside = ((y < -1) | (y >= geo.H) | (x < -1) | (x >= geo.W)) & ~(y.isnan() | x.isnan())
    y, x = torch.where(outside, 0.0, y), torch.where(outside, 0.0, x)
    y0, x0 = y.floor().detach(), x.floor().detach()
    ly, lx = (y - y0).to(input.dtype), (x - x0).to(input.dtype)
    total = torch.zeros((), dtype=input.dtype, device=input.device)
    for row, wy in ((y0, 1 - ly), (y0 + 1, ly)):
        for col, wx in ((x0, 1 - lx), (x0 + 1, lx)):
            inside = (row >= 0) & (row < geo.H) & (col >= 0) & (col < geo.W)
            corner = torch.where((inside & ~outside).unsqueeze(2), _pixels(input, row, col, geo), 0.0)
            total = total + corner * (wy * wx).unsqueeze(2)  # (N, G, C/G, K, L)
    return total.reshape(geo.N, geo.C, geo.K, geo.L)


def _pixels(input: Tensor, row: Tensor, col: Tensor, geo: Geometry) -> Tensor:
    """Values (N, G, C/G, K, L) at integer coordinates, clamped into the map."""
    row = row.nan_to_num(0).clamp(0, geo.H - 1).long()
    col = col.nan_to_num(0).clamp(0, geo.W - 1).long()
    index = (row * geo.W + col).reshape(geo.N, geo.G, 1, geo.K * geo.L)
    flat = input.reshape(geo.N, geo.G, geo.C // geo.G, geo.H * geo.W)
    picked = flat.gather(3, index.expand(-1, -1, geo.C // geo.G, -1))
    return picked.reshape(geo.N, geo.G, geo.C // geo.G, geo.K, geo.L)
