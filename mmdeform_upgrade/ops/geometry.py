# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The sizes of one deformable convolution, derived and checked once for every backend.

Vocabulary of this folder: ``N, C, H, W`` the input map; ``O, Ho, Wo`` the output map; ``K = kh*kw`` taps;
``L = Ho*Wo`` output positions; ``G`` deform groups (channels that share offsets); ``groups`` those of the
convolution. Offsets are in input pixels, ``(dy, dx)`` per tap.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ShapeError, UpgradeError

IntPair = int | tuple[int, int]


class Geometry(NamedTuple):
    """Sizes and strides of one call; every field is a plain int."""

    N: int
    C: int
    H: int
    W: int
    O: int  # noqa: E741
    kh: int
    kw: int
    Ho: int
    Wo: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dil_h: int
    dil_w: int
    groups: int
    G: int

    @property
    def K(self) -> int:
        """Number of taps."""
        return self.kh * self.kw

    @property
    def L(self) -> int:
        """Number of output positions of one image."""
        return self.Ho * self.Wo

    @property
    def farthest(self) -> int:
        """An offset that leads outside the map from wherever a tap may be; a larger one, infinity too, is the same."""
        return 2 * (self.H + self.W + self.pad_h + self.pad_w + 2)


def pair(value: IntPair, name: str, least: int) -> tuple[int, int]:
    """``3`` or ``(3, 1)`` as ``(h, w)``, refusing anything below ``least``."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2 or not all(is_whole(v, least) for v in values):
        raise ShapeError(f'{name} is {value!r}; expected one or two integers, each at least {least}.')
    return values


def is_whole(value: object, least: int = 0) -> bool:
    """Whether a setting is a whole number of at least ``least``; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def describe(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: IntPair,
    padding: IntPair,
    dilation: IntPair,
) -> Geometry:
    """Derive every size of the call and check the tensors against them.

    Raises:
        ShapeError: A shape does not fit; the message says what was found and what was expected.
    """
    _check_tensors(input=input, weight=weight, offset=offset, bias=bias, mask=mask)
    for name, tensor in (('input', input), ('weight', weight), ('offset', offset)):
        if tensor.dim() != 4:
            raise ShapeError(f'{name} has shape {tuple(tensor.shape)}; expected four dimensions.')
    sh, sw = pair(stride, 'stride', 1)
    ph, pw = pair(padding, 'padding', 0)
    dh, dw = pair(dilation, 'dilation', 1)
    N, C, H, W = _sizes(input)
    O, per_group, kh, kw = _sizes(weight)  # noqa: E741
    groups = _conv_groups(C, O, per_group, kh, kw)
    Ho = (H + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    Wo = (W + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    if Ho < 1 or Wo < 1:
        raise ShapeError(
            f'input of {H}x{W} pixels with padding {(ph, pw)} is smaller than the {kh}x{kw} kernel '
            f'with dilation {(dh, dw)}: the output would be {Ho}x{Wo}. Use a larger input or padding.'
        )
    G = _deform_groups(offset, C, kh * kw)
    geo = Geometry(N, C, H, W, O, kh, kw, Ho, Wo, sh, sw, ph, pw, dh, dw, groups, G)
    _check_shape('offset', offset, (N, 2 * G * geo.K, Ho, Wo))
    if mask is not None:
        _check_shape('mask', mask, (N, G * geo.K, Ho, Wo))
    if bias is not None:
        _check_shape('bias', bias, (O,))
    return geo


def _check_tensors(**tensors: object) -> None:
    for name, tensor in tensors.items():
        optional = name in ('bias', 'mask')
        if not isinstance(tensor, Tensor) and not (optional and tensor is None):
            none = ' or None' if optional else ''
            raise UpgradeError(f'{name} is a {type(tensor).__name__}; expected a tensor{none}.')


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    """The shape; while a tracer runs, as plain integers, which it would otherwise record."""
    return tuple(int(size) for size in tensor.shape) if torch.jit.is_tracing() else tuple(tensor.shape)


def _conv_groups(C: int, O: int, per_group: int, kh: int, kw: int) -> int:  # noqa: E741
    if min(O, per_group, kh, kw) < 1 or C < 1 or C % per_group:
        raise ShapeError(
            f'weight has shape {(O, per_group, kh, kw)} and input has {C} channels; expected weight '
            '(out_channels, in_channels // groups, kh, kw) whose second size divides the input channels.'
        )
    groups = C // per_group
    if O % groups:
        raise ShapeError(f'{O} output channels cannot be split into the {groups} groups that the weight implies.')
    return groups


def _deform_groups(offset: Tensor, C: int, K: int) -> int:
    found = _sizes(offset)[1]
    G = found // (2 * K)
    if found == 0 or found % (2 * K) or C % G:
        raise ShapeError(
            f'offset has {found} channels; expected a multiple of 2*kh*kw = {2 * K}, that is '
            f'2*deform_groups*kh*kw with deform_groups dividing the {C} input channels.'
        )
    return G


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if _sizes(tensor) != expected:
        raise ShapeError(f'{name} has shape {tuple(tensor.shape)}; expected {expected}.')
