# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What a fast backend consists of: a forward and a backward pass that know nothing of autograd."""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple, Protocol, cast

from torch import Tensor

from .geometry import Geometry

Saved = tuple[Tensor, Tensor, Tensor]  # whatever a backend's forward pass leaves to its backward pass


class Wanted(NamedTuple):
    """Which gradients the backward pass has to make."""

    input: bool
    plan: bool  # offset and mask
    weight: bool


class Grads(NamedTuple):
    """What the backward pass returns; None where it was not asked for."""

    input: Tensor | None
    offset: Tensor | None
    mask: Tensor | None
    weight: Tensor | None


class Passes(Protocol):
    """The functions of a backend's module."""

    def forward(
        self,
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        geo: Geometry,
    ) -> tuple[Tensor, Saved]:
        """The output map, in the dtype and memory format of the input, and what the backward pass needs."""

    def like_saved(self, input: Tensor, offset: Tensor, mask: Tensor | None, geo: Geometry) -> Saved:
        """Empty tensors like those that the forward pass would save."""

    def backward(self, saved: Saved, weight: Tensor, grad_output: Tensor, geo: Geometry, wanted: Wanted) -> Grads:
        """The gradients that are ``wanted``; those of offset and mask in the dtype of the coordinates."""


# 'auto' that has not become 'triton' is 'eager', and the plain convolution while offsets are zero.
_MODULES = {'auto': '.eager', 'eager': '.eager', 'triton': '.triton_backend'}


def passes(backend: str) -> Passes:
    """A backend's module, imported when it is first asked for."""
    return cast(Passes, import_module(_MODULES[backend], __package__))
