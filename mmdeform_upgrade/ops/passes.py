# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What a fast backend consists of: a forward and a backward pass that know nothing of autograd."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from .geometry import Geometry


class Operands(NamedTuple):
    """The tensors of one call."""

    input: Tensor
    offset: Tensor
    weight: Tensor
    bias: Tensor | None
    mask: Tensor | None


class Wanted(NamedTuple):
    """Which gradients the backward pass has to make."""

    input: bool
    plan: bool  # offset and mask
    weight: bool


class Grads(NamedTuple):
    """What the backward pass returns; None where it was not asked for."""

    input: Tensor | None
    offset: Tensor | None
    weight: Tensor | None
    mask: Tensor | None


class Passes(Protocol):
    """The functions of a backend's module."""

    def forward(self, operands: Operands, geo: Geometry) -> Tensor:
        """The output map, in the dtype and memory format of the input."""

    def backward(self, grad_output: Tensor, operands: Operands, geo: Geometry, wanted: Wanted) -> Grads:
        """The gradients that are ``wanted``, in any floating dtype; the bias plays no part."""
