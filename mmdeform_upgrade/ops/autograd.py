# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A backend's forward and backward pass as two operators of PyTorch's dispatcher, and as one autograd function.

As operators they are opaque: ``torch.compile`` keeps them whole (no graph break, no unrolled chunks), tracers
see one node, FLOP counters one formula.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import eager, matrices, sampling
from .geometry import Geometry

_LIBRARY = torch.library.Library('mmdeform_upgrade', 'DEF')
_LIBRARY.define(
    'deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, SymInt[] sizes)'
    ' -> (Tensor output, Tensor table, Tensor base, Tensor interp)'
)
_LIBRARY.define(
    'deform_conv2d_backward(Tensor table, Tensor base, Tensor interp, Tensor weight, Tensor grad_output,'
    ' SymInt[] sizes, bool[] wanted, bool channels_last)'
    ' -> (Tensor input, Tensor offset, Tensor mask, Tensor weight)'
)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geo: Geometry,
) -> Tensor:
    """Deformable convolution; see :func:`mmdeform_upgrade.ops.deform_conv2d`."""
    tensors = (input, offset, weight, bias, mask)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        output: Tensor = _DeformConv2d.apply(*tensors, geo)
        return output
    inference: Tensor = torch.ops.mmdeform_upgrade.deform_conv2d(*tensors, list(geo))[0]
    return inference


class _DeformConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        input, offset, weight, bias, mask, geo = args
        output, *saved = torch.ops.mmdeform_upgrade.deform_conv2d(input, offset, weight, bias, mask, list(geo))
        ctx.save_for_backward(*saved, weight)
        ctx.geo = geo
        ctx.channels_last = matrices.format_of(input) is torch.channels_last
        ctx.offset_dtype = offset.dtype
        ctx.mask_dtype = None if mask is None else mask.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        table, base, interp, weight = ctx.saved_tensors
        need_input, need_offset, need_weight, need_bias, need_mask, _ = ctx.needs_input_grad
        wanted = [need_input, need_offset or need_mask, need_weight]
        run = torch.ops.mmdeform_upgrade.deform_conv2d_backward
        grads = run(table, base, interp, weight, grad_output, list(ctx.geo), wanted, ctx.channels_last)
        return (
            grads[0] if need_input else None,
            grads[1].to(ctx.offset_dtype) if need_offset else None,
            grads[3] if need_weight else None,
            grad_output.sum((0, 2, 3)) if need_bias else None,
            grads[2].to(ctx.mask_dtype) if need_mask else None,
            None,
        )


def _forward(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, sizes: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(input.device.type, enabled=False):
        output, (table, plan) = eager.forward(input, offset, weight, bias, mask, Geometry(*sizes))
    return output, table, plan.base, plan.interp


def _forward_fake(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, sizes: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    geo = Geometry(*sizes)
    work = torch.promote_types(input.dtype, torch.float32)
    output = torch.empty(
        (geo.N, geo.O, geo.Ho, geo.Wo), dtype=input.dtype, device=input.device, memory_format=matrices.format_of(input)
    )
    rows, cols = sampling.table_size(geo)
    table = input.new_empty((rows * cols * geo.G, geo.C // geo.G), dtype=work)
    base = input.new_empty((geo.N * geo.L, geo.K, geo.G), dtype=sampling.index_dtype(geo))
    interp = table.new_empty((2 if mask is None else 3, geo.N * geo.L, geo.K, geo.G))
    return output, table, base, interp


def _backward(
    table: Tensor,
    base: Tensor,
    interp: Tensor,
    weight: Tensor,
    grad_output: Tensor,
    sizes: list[int],
    wanted: list[bool],
    channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    geo = Geometry(*sizes)
    with torch.autocast(table.device.type, enabled=False):
        saved = eager.Saved(table, sampling.Plan(base, interp))
        grads = eager.backward(saved, weight, grad_output, geo, eager.Wanted(*wanted))
    nothing = table.new_empty(0)
    grad_input = nothing
    if grads.input is not None:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        grad_input = grads.input.to(weight.dtype).contiguous(memory_format=memory_format)
    others = (nothing.clone() if g is None else g for g in grads[1:])
    return grad_input, *others


def _backward_fake(
    table: Tensor,
    base: Tensor,
    interp: Tensor,
    weight: Tensor,
    grad_output: Tensor,
    sizes: list[int],
    wanted: list[bool],
    channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    geo = Geometry(*sizes)
    need_input, need_plan, need_weight = wanted
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    grad_input = torch.empty(
        (geo.N, geo.C, geo.H, geo.W), dtype=weight.dtype, device=table.device, memory_format=memory_format
    )
    masked = need_plan and len(interp) == 3
    nothing = table.new_empty(0)
    return (
        grad_input if need_input else nothing,
        table.new_empty((geo.N, 2 * geo.G * geo.K, geo.Ho, geo.Wo)) if need_plan else nothing.clone(),
        table.new_empty((geo.N, geo.G * geo.K, geo.Ho, geo.Wo)) if masked else nothing.clone(),
        torch.empty_like(matrices.dense(weight)) if need_weight else nothing.clone(),
    )


def _register() -> None:
    _LIBRARY.impl('deform_conv2d', _forward, 'CompositeExplicitAutograd')
    _LIBRARY.impl('deform_conv2d_backward', _backward, 'CompositeExplicitAutograd')
    fake = getattr(torch.library, 'register_fake', None) or torch.library.impl_abstract
    fake('mmdeform_upgrade::deform_conv2d')(_forward_fake)
    fake('mmdeform_upgrade::deform_conv2d_backward')(_backward_fake)


_register()
