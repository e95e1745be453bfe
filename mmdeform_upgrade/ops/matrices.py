# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Maps and kernels as matrices, and the products that a column-based convolution is made of.

A column matrix is (p, k*C): ``p`` output positions, the channels of ``k`` taps. The kernel of some taps is
(groups, O/groups, k*C/groups), each row in the order of a column.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .chunks import LONGEST_SUM, ranges
from .geometry import Geometry

# oneDNN's product is up to twice as fast as that of MKL, whose float32 error is lower; it is what inductor calls.
_ONEDNN = getattr(torch.ops.mkldnn, '_linear_pointwise', None) if torch.backends.mkldnn.is_available() else None
_BFLOAT16_CPU = bool(getattr(torch.cpu, '_is_avx512_bf16_supported', bool)())
LARGE_IMAGE = 2**15  # numbers of one image, from which on images are transposed one by one


def product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype that products are made in: reduced precision where there are units for it."""
    if weight.device.type != 'cpu' or (weight.dtype == torch.bfloat16 and _BFLOAT16_CPU):
        return weight.dtype
    return torch.promote_types(weight.dtype, torch.float32)


def kernel_matrix(weight: Tensor, taps: slice, geo: Geometry, turned: bool = False) -> Tensor:
    """Some taps of the kernel (O, C/groups, kh, kw) as (groups, O/groups, k*C/groups); a view of all of channels-last.

    Turned columns need the whole of a contiguous one, (1, O, C*K), which is a view of it.
    """
    if turned:
        return weight.view(1, geo.O, -1)
    whole = taps.stop - taps.start == geo.K
    rows = weight.permute(0, 2, 3, 1) if whole else _by_tap(weight)[:, taps]
    return rows.reshape(geo.groups, geo.O // geo.groups, -1).contiguous()


def join_taps(parts: list[Tensor], weight: Tensor, geo: Geometry, turned: bool = False) -> Tensor:
    """The kernel's gradient from those of some taps each, shaped as by :func:`kernel_matrix`."""
    if not parts:  # there is no position to sum over
        return torch.zeros_like(weight)
    if turned:
        return parts[0].view_as(weight)
    if len(parts) == 1:
        return parts[0].view(geo.O, geo.kh, geo.kw, -1).permute(0, 3, 1, 2)
    grad = torch.empty_like(weight, memory_format=format_of(weight))
    torch.cat([part.view(geo.O, -1, geo.C // geo.groups) for part in parts], dim=1, out=_by_tap(grad))
    return grad


def turn(columns: Tensor, outer: int) -> Tensor:
    """Columns (p, outer * inner) as (p, inner * outer)."""
    return columns.view(len(columns), outer, -1).transpose(1, 2).flatten(1)


def _by_tap(weight: Tensor) -> Tensor:
    """The kernel as (O, K, C/groups); a view in either memory format."""
    return weight.permute(0, 2, 3, 1).flatten(1, 2)


def map_to_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A map (N, C, H, W) as (N*H*W, C); no copy if it is channels-last already."""
    if tensor.is_contiguous(memory_format=torch.channels_last) or not tensor.is_cpu:
        return tensor.permute(0, 2, 3, 1).to(dtype).flatten(0, 2)
    N, C, H, W = tensor.shape
    rows = tensor.new_empty((N, H * W, C), dtype=dtype)
    _transpose_into(rows, tensor.flatten(2))
    return rows.flatten(0, 1)


def in_format(tensor: Tensor, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
    """A map whose strides are channels-last, in a memory format; a copy unless it is that already."""
    if memory_format is torch.channels_last:
        return tensor.to(dtype).contiguous(memory_format=memory_format)
    output = torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
    _transpose_into(output.flatten(2), tensor.permute(0, 2, 3, 1).flatten(1, 2))
    return output


def _transpose_into(targets: Tensor, matrices: Tensor) -> None:
    """Copy a batch of matrices (N, A, B) to (N, B, A)."""
    large = matrices.device.type == 'cpu' and matrices.numel() >= LARGE_IMAGE * len(matrices)
    if large and not torch.jit.is_tracing():  # PyTorch copies two dimensions in blocks, up to three times as fast
        for target, matrix in zip(targets.unbind(0), matrices.unbind(0), strict=True):
            target.copy_(matrix.t())
    else:
        targets.copy_(matrices.transpose(1, 2))


def format_of(tensor: Tensor) -> torch.memory_format:
    """Channels-last only where the tensor is that and nothing else."""
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not tensor.is_contiguous() else torch.contiguous_format


def project(out: Tensor, columns: Tensor, kernel: Tensor, geo: Geometry, first: bool) -> None:
    """``out`` (p, O) = columns times kernel transposed; added to it unless ``first``."""
    columns, width = columns.to(kernel.dtype), columns.shape[1]
    products: Iterable[Tensor]
    if geo.groups > 1:
        grouped = torch.bmm(_split_columns(columns, geo), kernel.transpose(1, 2))
        products = [grouped.permute(1, 0, 2).reshape(out.shape)]
    elif columns.is_cpu and width > LONGEST_SUM and 8 * len(columns) <= geo.O:  # copying the kernel would take longer
        products = [columns @ kernel[0].t()]
    else:
        parts = ranges(width, LONGEST_SUM if columns.is_cpu else width)
        products = (_times(columns[:, part], kernel[0][:, part].t()) for part in parts)
    for product in products:
        out.copy_(product) if first else out.add_(product)
        first = False


def add_grad_kernel(total: Tensor | None, columns: Tensor, turned: Tensor, geo: Geometry, whole: bool) -> Tensor:
    """``turned`` (O, p) times columns, plus ``total``; in float32 at least unless it is the whole.

    Shaped as :func:`kernel_matrix` if there are groups, else (O, k*C).
    """
    like = turned.dtype if whole else torch.promote_types(columns.dtype, torch.float32)
    columns = columns.to(turned.dtype)
    if geo.groups > 1:
        product = torch.bmm(turned.reshape(geo.groups, geo.O // geo.groups, -1), _split_columns(columns, geo))
    elif columns.is_cuda and columns.dtype == torch.float32 and tf32_allowed():
        product = _pointwise_grad(turned.t(), columns)
    else:
        product = _times(turned, columns)
    return product.to(like) if total is None else total.add_(product)


def grad_columns(grad_rows: Tensor, kernel: Tensor, geo: Geometry) -> Tensor:
    """Gradient (p, k*C) of the columns: grad_rows (p, O) times kernel."""
    if geo.groups == 1:
        return _times(grad_rows, kernel[0])
    outputs = grad_rows.view(len(grad_rows), geo.groups, -1).permute(1, 0, 2)
    product = torch.bmm(outputs, kernel)  # (groups, p, k*C/groups)
    split = product.view(geo.groups, len(grad_rows), -1, geo.C // geo.groups)
    return split.permute(1, 2, 0, 3).reshape(len(grad_rows), -1)


def _times(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` by the fastest product there is."""
    if a.dtype == torch.float32:
        if a.is_cuda and tf32_allowed():
            return _as_convolution(a, b.t())
        # The switch is there since torch 2.6.
        if a.is_cpu and _ONEDNN and getattr(torch.backends.mkldnn, 'enabled', True) and not torch.jit.is_tracing():
            product: Tensor = _ONEDNN(_blas_ready(a), _blas_ready(b.t()), None, 'none', [], '')
            return product
    return a @ b


def tf32_allowed() -> bool:
    """Whether convolutions, what this operator stands for, may use TF32; matrix products have another switch."""
    try:
        return bool(torch.backends.cudnn.enabled and torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # the newer switch was set, which forbids to read the older one
        return str(torch.backends.cudnn.conv.fp32_precision) == 'tf32'  # type: ignore[attr-defined]


def _as_convolution(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.t()`` as a pointwise convolution, in the precision that convolutions have."""
    image = a.contiguous().view(1, 1, *a.shape).permute(0, 3, 1, 2)  # (1, sum, 1, rows), channels-last
    output = torch.nn.functional.conv2d(image, b[:, :, None, None])
    return output.permute(0, 2, 3, 1).reshape(len(a), len(b))


def _pointwise_grad(grad_rows: Tensor, columns: Tensor) -> Tensor:
    """``grad_rows.t() @ columns`` as the kernel's gradient of a pointwise convolution, in its precision."""
    grad, image = (t.contiguous().view(1, 1, *t.shape).permute(0, 3, 1, 2) for t in (grad_rows, columns))
    weight = columns.new_empty(grad_rows.shape[1], columns.shape[1], 1, 1)
    found: Tensor = torch.ops.aten.convolution_backward(
        grad, image, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
    )[1]
    return found.flatten(1)


def _blas_ready(matrix: Tensor) -> Tensor:
    """Contiguous or the transpose of that; oneDNN takes other strides, but is a thousand times slower with them."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def _split_columns(columns: Tensor, geo: Geometry) -> Tensor:
    """Columns (p, k*C) as one matrix per convolution group, (groups, p, k*C/groups)."""
    split = columns.view(len(columns), -1, geo.groups, geo.C // geo.groups).permute(2, 0, 1, 3)
    return split.reshape(geo.groups, len(columns), -1)
