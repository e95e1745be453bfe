# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What a fast backend takes and returns, and the loops over pieces of the columns that all of them run.

A backend is a module of two functions that know nothing of autograd: ``forward(operands, geo)`` returns the output map
in the dtype and memory format of the input; ``backward(grad_output, operands, geo, wanted)`` returns :class:`Grads` in
any floating dtype, without the bias's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from . import matrices
from .chunks import Cuts
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

    input: Tensor | None = None
    offset: Tensor | None = None
    weight: Tensor | None = None
    mask: Tensor | None = None


def project(sample: Callable[[slice, slice], Tensor], rows: Tensor, weight: Tensor, cuts: Cuts, geo: Geometry) -> None:
    """Write the outputs ``rows`` (N*L, O), from the columns (p, k*C) that ``sample(positions, taps)`` makes.

    Products are made in the dtype of ``weight``.
    """
    for taps in cuts.taps:
        kernel = matrices.kernel_matrix(weight, taps, geo, cuts.turned)
        for positions in cuts.positions:
            columns = sample(positions, taps)
            columns = matrices.turn(columns, geo.K) if cuts.turned else columns
            matrices.project(rows[positions], columns, kernel, geo, first=taps.start == 0)
            del columns  # before the next ones are made


def differentiate(
    step: Callable[[slice, slice, Tensor | None], Tensor | None],
    grad_output: Tensor,
    weight: Tensor,
    wanted: Wanted,
    cuts: Cuts,
    geo: Geometry,
) -> Tensor | None:
    """The kernel's gradient; and have ``step`` bring that of the columns to where they come from.

    ``step(positions, taps, grad_columns)`` gets it as (p, k*C), or None if only the kernel's is wanted, and returns the
    columns (p, k*C), or None if the kernel's is not wanted. Products are made in the dtype of ``weight``.
    """
    rows, grad_kernels = matrices.map_to_rows(grad_output, weight.dtype), []
    turned = rows.t()
    if rows.is_cpu:  # as contiguous as products like it
        turned = grad_output.to(weight.dtype).transpose(0, 1).reshape(geo.O, -1)
    for taps in cuts.taps:
        kernel = matrices.kernel_matrix(weight, taps, geo, cuts.turned) if wanted.input or wanted.plan else None
        grad_kernel = None
        for positions in cuts.positions:
            grad_columns = None
            if kernel is not None:
                grad_columns = matrices.grad_columns(rows[positions], kernel, geo)
                grad_columns = matrices.turn(grad_columns, geo.C) if cuts.turned else grad_columns
            columns = step(positions, taps, grad_columns)
            del grad_columns
            if columns is not None:
                columns = matrices.turn(columns, geo.K) if cuts.turned else columns
                grad_kernel = matrices.add_grad_kernel(grad_kernel, columns, turned[:, positions], geo, cuts.whole)
            del columns  # before those of the next piece are made
        grad_kernels += [] if grad_kernel is None else [grad_kernel]
    return matrices.join_taps(grad_kernels, weight, geo, cuts.turned) if wanted.weight else None
