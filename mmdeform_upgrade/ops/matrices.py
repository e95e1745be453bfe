# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Maps and kernels as matrices, and the products that a column-based convolution is made of.

A column matrix is (p, k*C): ``p`` output positions, the channels of ``k`` taps. A kernel matrix is
(groups, K*C/groups, O/groups), its rows in the order of a column, so some taps are a slice of its rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import Geometry


def kernel_to_matrix(weight: Tensor, geo: Geometry) -> Tensor:
    """The kernel (O, C/groups, kh, kw) as (groups, K*C/groups, O/groups)."""
    w = weight.reshape(geo.groups, geo.O // geo.groups, geo.C // geo.groups, geo.K)
    return w.permute(0, 3, 2, 1).reshape(geo.groups, -1, geo.O // geo.groups)


def matrix_to_kernel(matrix: Tensor, geo: Geometry) -> Tensor:
    """The inverse of :func:`kernel_to_matrix`."""
    w = matrix.view(geo.groups, geo.K, geo.C // geo.groups, geo.O // geo.groups)
    return w.permute(0, 3, 2, 1).reshape(geo.O, geo.C // geo.groups, geo.kh, geo.kw)


def kernel_taps(matrix: Tensor, taps: slice, geo: Geometry) -> Tensor:
    """The rows of a kernel matrix that belong to some taps; a view."""
    channels = geo.C // geo.groups
    return matrix[:, taps.start * channels : taps.stop * channels]


def map_to_rows(tensor: Tensor, geo: Geometry, dtype: torch.dtype) -> Tensor:
    """A map (N, O, Ho, Wo) as (N*L, O); no copy if it is channels-last already."""
    return tensor.permute(0, 2, 3, 1).to(dtype).reshape(geo.N * geo.L, geo.O)


def rows_to_map(rows: Tensor, geo: Geometry, like: Tensor) -> Tensor:
    """Rows (N*L, O) as a map in the dtype and memory format of ``like``."""
    output = rows.view(geo.N, geo.Ho, geo.Wo, geo.O).permute(0, 3, 1, 2)
    return output.to(like.dtype).contiguous(memory_format=format_of(like))


def format_of(tensor: Tensor) -> torch.memory_format:
    """Channels-last only where the tensor is that and nothing else."""
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not tensor.is_contiguous() else torch.contiguous_format


def project(out: Tensor, columns: Tensor, kernel: Tensor, geo: Geometry, first: bool) -> None:
    """``out`` (p, O) = columns times kernel; added to it unless ``first``."""
    if geo.groups == 1:
        torch.addmm(out, columns, kernel[0], beta=0 if first else 1, out=out)
        return
    product = torch.bmm(_split_columns(columns, geo), kernel)  # (groups, p, O/groups)
    target = _split_outputs(out, geo)
    target.copy_(product) if first else target.add_(product)


def grad_kernel(out: Tensor, columns: Tensor, grad_rows: Tensor, geo: Geometry, first: bool) -> None:
    """``out``, a part of the kernel matrix, = columns transposed times grad_rows; added unless ``first``."""
    if geo.groups == 1:
        torch.addmm(out[0], columns.t(), grad_rows, beta=0 if first else 1, out=out[0])
        return
    split = _split_columns(columns, geo).transpose(1, 2)
    product = torch.bmm(split, _split_outputs(grad_rows, geo))
    out.copy_(product) if first else out.add_(product)


def grad_columns(out: Tensor, grad_rows: Tensor, kernel: Tensor, geo: Geometry) -> None:
    """``out`` (p, k*C) = grad_rows (p, O) times kernel transposed."""
    if geo.groups == 1:
        torch.mm(grad_rows, kernel[0].t(), out=out)
        return
    product = torch.bmm(_split_outputs(grad_rows, geo), kernel.transpose(1, 2))
    _unsplit_columns(out, geo).copy_(product.view(geo.groups, len(out), -1, geo.C // geo.groups))


def _split_columns(columns: Tensor, geo: Geometry) -> Tensor:
    """Columns (p, k*C) as one matrix per convolution group, (groups, p, k*C/groups)."""
    return _unsplit_columns(columns, geo).reshape(geo.groups, len(columns), -1)


def _unsplit_columns(columns: Tensor, geo: Geometry) -> Tensor:
    """Columns (p, k*C) as (groups, p, k, C/groups); a view."""
    return columns.view(len(columns), -1, geo.groups, geo.C // geo.groups).permute(2, 0, 1, 3)


def _split_outputs(rows: Tensor, geo: Geometry) -> Tensor:
    """Rows (p, O) as (groups, p, O/groups); a view."""
    return rows.view(len(rows), geo.groups, -1).permute(1, 0, 2)
