# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The public function: checks, autocast and the choice of a backend."""

from __future__ import annotations

import importlib.metadata
import os

import torch
from torch import Tensor

from ..errors import UpgradeError
from . import autograd, reference
from .autocast import autocast, no_autocast
from .geometry import IntPair, describe
from .passes import Operands

BACKENDS = ('auto', 'reference', 'eager', 'triton')
_LEAST_TRITON = 3
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _triton_version() -> int:
    """The major version that is installed, under one of the names that it is distributed by; 0 if there is none."""
    for name in ('triton', 'pytorch-triton', 'triton-windows'):
        try:
            return int(importlib.metadata.version(name).partition('.')[0])
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
    return 0


_TRITON = _triton_version()


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    mask: Tensor | None = None,
    *,
    backend: str = 'auto',
) -> Tensor:
    """Deformable convolution, version 1 or (with ``mask``) version 2; torchvision's meaning and signature.

    Args:
        input: Map (N, C, H, W) in any memory format; N may be 0.
        offset: (N, 2*G*kh*kw, Ho, Wo), in input pixels, ordered deform group, tap, ``(dy, dx)``. G, the
            number of deform groups, is inferred from it.
        weight: (O, C // groups, kh, kw); the groups of the convolution are inferred from it.
        bias: (O,) or None.
        stride: One integer or ``(h, w)``, as ``padding`` and ``dilation``.
        padding: Zeros around the input.
        dilation: Distance of neighbouring taps.
        mask: Modulation (N, G*kh*kw, Ho, Wo) that each sample is multiplied by, or None.
        backend: ``'reference'`` (slow specification), ``'eager'`` (plain PyTorch, any device), ``'triton'``
            (GPU kernels, need the package triton) or ``'auto'``: triton where it can run, else eager.

    Returns:
        The map (N, O, Ho, Wo) in the dtype of ``input`` (under autocast: in the autocast dtype). A sample is
        the bilinear interpolation of the zero-extended map; its derivative at integer coordinates is the one
        from the right. Coordinates are computed in float32 at least. Samples far outside, infinitely far
        included, are 0, and so are their gradients; a NaN offset gives NaN outputs where it is used, and NaN
        gradients at the weight, at the pixels around the tap's place and at its other offset.

    Raises:
        ShapeError: The shapes do not fit together.
        UpgradeError: A dtype, a device or the backend cannot be used.

    References:
        Dai et al., Deformable Convolutional Networks, 2017, section 2.1; Zhu et al., Deformable ConvNets v2,
        2018, section 3.2 (the mask).
    """
    geo = describe(input, offset, weight, bias, mask, stride, padding, dilation)
    input, weight, bias = autocast(input, weight, bias)
    operands = Operands(input, offset, weight, bias, mask)
    _check_types(operands)
    chosen = _choose(backend, input)
    if chosen != 'reference':
        return autograd.deform_conv2d(operands, geo, chosen)
    with no_autocast(input.device.type):
        return reference.deform_conv2d(*operands, geo)


def _check_types(operands: Operands) -> None:
    input = operands.input
    for name, tensor in zip(Operands._fields, operands, strict=True):
        if tensor is None:
            continue
        if tensor.dtype not in _FLOATS:
            raise UpgradeError(f'{name} is {tensor.dtype}; expected float16, bfloat16, float32 or float64.')
        if tensor.device != input.device:
            raise UpgradeError(f'{name} is on {tensor.device} and input on {input.device}; move them to one device.')
        if name in ('weight', 'bias') and tensor.dtype != input.dtype:
            raise UpgradeError(f'{name} is {tensor.dtype} and input {input.dtype}; cast one of them, or use autocast.')


def _choose(name: str, input: Tensor) -> str:
    """The backend to run, after its checks."""
    if name not in BACKENDS:
        raise UpgradeError(f'backend {name!r} is unknown; expected one of {", ".join(BACKENDS)}.')
    if name == 'triton':
        _check_triton(input)
    return 'triton' if name == 'auto' and _triton_suits(input) else name


def _triton_suits(input: Tensor) -> bool:
    """Whether 'auto' is 'triton': on GPUs with the matrix units that its kernels were measured on, or newer ones."""
    if not input.is_cuda or input.dtype == torch.float64 or torch.jit.is_tracing() or _TRITON < _LEAST_TRITON:
        return False
    return getattr(torch.version, 'hip', None) is None and torch.cuda.get_device_capability(input.device) >= (8, 0)


def _check_triton(input: Tensor) -> None:
    if _TRITON < _LEAST_TRITON:
        found = f'version {_TRITON} is' if _TRITON else 'it is not'
        problem = f'needs the package triton, version {_LEAST_TRITON} or newer; {found} installed'
    elif input.dtype == torch.float64:
        problem = 'has no float64'
    elif not input.is_cuda and os.environ.get('TRITON_INTERPRET', '0') != '1':
        problem = (
            f'needs a CUDA tensor, input is on {input.device} (TRITON_INTERPRET=1, set before Python starts, interprets '
            'the kernels slowly)'
        )
    else:
        return
    raise UpgradeError(f"backend 'triton' {problem}; use backend='eager'.")
