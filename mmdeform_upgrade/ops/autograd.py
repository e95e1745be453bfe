# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A backend's forward and backward pass as two operators of PyTorch's dispatcher, and as one autograd function.

As operators they are opaque: ``torch.compile`` keeps them whole (no graph break, no unrolled chunks), tracers
see one node, FLOP counters one formula. Only the arguments are kept for the backward pass, as by a plain convolution.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UpgradeError
from . import eager, flops, matrices
from .autocast import no_autocast
from .geometry import Geometry
from .passes import Operands, Wanted

is_compiling = getattr(torch.compiler, 'is_compiling', bool)  # since torch 2.2


_stances: list[Any] = []  # each goes back to the one before


def run_uncompiled(on: bool) -> None:
    """Run compiled networks as plain ones from now on, or no longer: they pass over hooks that came after them.

    Who asks for it ends it; the last one brings back the compiler's stance. Before PyTorch 2.6 there is no such switch.
    """
    if on:
        known = 'torch._dynamo' in sys.modules and hasattr(torch.compiler, 'set_stance')
        _stances.append(torch.compiler.set_stance('force_eager') if known else nullcontext())
    elif _stances:
        _stances.pop().__exit__(None, None, None)


_LIBRARY = torch.library.Library('mmdeform_upgrade', 'DEF')
_LIBRARY.define(
    'deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, SymInt[] sizes, str backend)'
    ' -> Tensor'
)
_LIBRARY.define(
    'deform_conv2d_backward(Tensor grad_output, Tensor input, Tensor offset, Tensor weight, Tensor? mask,'
    ' SymInt[] sizes, str backend, bool[] wanted) -> (Tensor input, Tensor offset, Tensor weight, Tensor mask)'
)


def _module(backend: str) -> ModuleType:
    """A backend's module; that of Triton is imported when it is first asked for."""
    if backend != 'triton':  # 'auto' that has not become 'triton' is 'eager', and the plain convolution at zero offsets
        return eager
    from . import triton_backend

    return triton_backend


def deform_conv2d(operands: Operands, geo: Geometry, backend: str) -> Tensor:
    """Deformable convolution; see :func:`mmdeform_upgrade.ops.deform_conv2d`."""
    if torch.jit.is_tracing() and not torch.onnx.is_in_onnx_export():
        return _module(backend).forward(operands, geo)  # a tracer records plain operations
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    # ONNX's older exporter asks the function for its `symbolic`.
    call = _DeformConv2d.apply if needs_grad or torch.jit.is_tracing() else _FORWARD
    output: Tensor = call(*operands, geo, backend)
    return output


class _DeformConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        input, offset, weight, _, mask, ctx.geo, ctx.backend = args
        ctx.save_for_backward(input, offset, weight, mask)
        output: Tensor = _FORWARD(*args)
        return output

    @staticmethod
    def symbolic(g: Any, input: Any, offset: Any, weight: Any, bias: Any, mask: Any, geo: Any, backend: str) -> Any:
        """ONNX's ``DeformConv``, for PyTorch's older exporter (``dynamo=False``)."""
        inputs = [input, weight, offset]
        if bias is not None or mask is not None:
            inputs.append(g.op('Constant', value_t=torch.zeros(geo.O)) if bias is None else bias)
        inputs += [] if mask is None else [mask]
        return g.op('DeformConv', *inputs, **{f'{name}_i': value for name, value in onnx_attributes(geo).items()})

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not is_compiling():  # create_graph=True
            raise UpgradeError(
                'deform_conv2d was differentiated with create_graph=True, but its fast backends have no second-order '
                "gradients. Use backend='reference', which has them."
            )
        need_input, need_offset, need_weight, need_bias, need_mask, *_ = ctx.needs_input_grad
        input, offset, weight, mask = ctx.saved_tensors
        wanted = [need_input, need_offset or need_mask, need_weight]
        grads = _BACKWARD(grad_output, input, offset, weight, mask, ctx.geo, ctx.backend, wanted)
        return (
            grads[0] if need_input else None,
            grads[1] if need_offset else None,
            grads[2] if need_weight else None,
            grad_output.sum((0, 2, 3)) if need_bias else None,
            grads[3] if need_mask else None,
            None,
            None,
        )


def onnx_attributes(geo: Geometry) -> dict[str, Any]:
    """Attributes of ONNX's ``DeformConv``; N, H and W, which an export may leave open, are not among them."""
    return {
        'dilations': [geo.dil_h, geo.dil_w],
        'group': geo.groups,
        'kernel_shape': [geo.kh, geo.kw],
        'offset_group': geo.G,
        'pads': [geo.pad_h, geo.pad_w, geo.pad_h, geo.pad_w],
        'strides': [geo.stride_h, geo.stride_w],
    }


def _forward(*arguments: Any) -> Tensor:
    *tensors, sizes, backend = arguments
    flops.register()
    operands, geo = Operands(*tensors), Geometry(*sizes)
    with no_autocast(operands.input.device.type):
        if backend == 'auto' and operands.mask is None and _is_plain(operands.offset):
            return _plain(operands, geo)
        return _module(backend).forward(operands, geo)


def _is_plain(offset: Tensor) -> bool:
    # Asking a GPU would make the host wait for it, every time.
    return offset.device.type == 'cpu' and offset.numel() > 0 and not bool(offset.any())


def _plain(operands: Operands, geo: Geometry) -> Tensor:
    """What the layer computed before it was upgraded, to the bit."""
    stride, padding = (geo.stride_h, geo.stride_w), (geo.pad_h, geo.pad_w)
    input, _, weight, bias, _ = operands
    output = F.conv2d(input, weight, bias, stride, padding, (geo.dil_h, geo.dil_w), geo.groups)
    return output.contiguous(memory_format=matrices.format_of(input))


def _forward_meta(input: Tensor, *arguments: Any) -> Tensor:
    geo = Geometry(*arguments[4])
    shape = (geo.N, geo.O, geo.Ho, geo.Wo)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=matrices.format_of(input))


def _backward(grad_output: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Any, *rest: Any) -> Any:
    sizes, backend, wanted = rest
    operands = Operands(input, offset, weight, None, mask)
    with no_autocast(input.device.type):
        grads = _module(backend).backward(grad_output, operands, Geometry(*sizes), Wanted(*wanted))
    return tuple(
        input.new_empty(0)
        if grad is None or like is None
        else grad.to(like.dtype).contiguous(memory_format=matrices.format_of(like))
        for grad, like in zip(grads, (input, offset, weight, mask), strict=True)
    )


def _backward_meta(grad_output: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Any, *rest: Any) -> Any:
    need_input, need_plan, need_weight = rest[2]
    needed = ((input, need_input), (offset, need_plan), (weight, need_weight), (mask, need_plan))
    return tuple(
        torch.empty_like(like, memory_format=matrices.format_of(like))
        if need and like is not None
        else input.new_empty(0)
        for like, need in needed
    )


for _name, _run, _shapes in (
    ('deform_conv2d', _forward, _forward_meta),
    ('deform_conv2d_backward', _backward, _backward_meta),
):
    _LIBRARY.impl(_name, _run, 'CompositeExplicitAutograd')
    _LIBRARY.impl(_name, _shapes, 'Meta')
_FORWARD = torch.ops.mmdeform_upgrade.deform_conv2d.default
_BACKWARD = torch.ops.mmdeform_upgrade.deform_conv2d_backward.default
flops.register()
