# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A backend's forward and backward pass as two operators of PyTorch's dispatcher, and as one autograd function.

As operators they are opaque: ``torch.compile`` keeps them whole (no graph break, no unrolled chunks), tracers
see one node, FLOP counters one formula.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UpgradeError
from . import flops, matrices
from .geometry import Geometry
from .passes import Wanted, passes

_LIBRARY = torch.library.Library('mmdeform_upgrade', 'DEF')
_LIBRARY.define(
    'deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, SymInt[] sizes,'
    ' str backend, bool saving=True) -> (Tensor output, Tensor saved0, Tensor saved1, Tensor saved2)'
)
_LIBRARY.define(
    'deform_conv2d_backward(Tensor saved0, Tensor saved1, Tensor saved2, Tensor weight, Tensor grad_output,'
    ' SymInt[] sizes, str backend, bool[] wanted, bool masked, bool channels_last)'
    ' -> (Tensor input, Tensor offset, Tensor mask, Tensor weight)'
)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geo: Geometry,
    backend: str,
) -> Tensor:
    """Deformable convolution; see :func:`mmdeform_upgrade.ops.deform_conv2d`."""
    tensors = (input, offset, weight, bias, mask)
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
        node: Tensor = _DeformConv2d.apply(*tensors, geo, backend)  # its `symbolic` is one node
        return node
    if torch.jit.is_tracing():
        return passes(backend).forward(*tensors, geo)[0]  # a tracer records plain operations
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        output: Tensor = _DeformConv2d.apply(*tensors, geo, backend)
        return output
    inference: Tensor = torch.ops.mmdeform_upgrade.deform_conv2d(*tensors, list(geo), backend, False)[0]
    return inference


class _DeformConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        input, offset, weight, bias, mask, geo, backend = args
        run = torch.ops.mmdeform_upgrade.deform_conv2d
        output, *saved = run(input, offset, weight, bias, mask, list(geo), backend)
        ctx.save_for_backward(*saved, weight)
        ctx.geo, ctx.backend = geo, backend
        ctx.channels_last = matrices.format_of(input) is torch.channels_last
        ctx.offset_dtype = offset.dtype
        ctx.mask_dtype = None if mask is None else mask.dtype
        return output

    @staticmethod
    def symbolic(g: Any, input: Any, offset: Any, weight: Any, bias: Any, mask: Any, geo: Any, backend: str) -> Any:
        """ONNX's ``DeformConv``, for PyTorch's older exporter (``dynamo=False``)."""
        inputs = [input, weight, offset]
        if bias is not None or mask is not None:
            inputs.append(g.op('Constant', value_t=torch.zeros(geo.O)) if bias is None else bias)
        inputs += [] if mask is None else [mask]
        attributes = onnx_attributes(geo).items()
        return g.op('DeformConv', *inputs, **{f'{name}_i': value for name, value in attributes})

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not _is_compiling():  # create_graph=True
            raise UpgradeError(
                'deform_conv2d was differentiated with create_graph=True, but its fast backends have no second-order '
                "gradients. Use backend='reference', which has them."
            )
        need_input, need_offset, need_weight, need_bias, need_mask, *_ = ctx.needs_input_grad
        wanted = [need_input, need_offset or need_mask, need_weight]
        grads = torch.ops.mmdeform_upgrade.deform_conv2d_backward(
            *ctx.saved_tensors,
            grad_output,
            list(ctx.geo),
            ctx.backend,
            wanted,
            ctx.mask_dtype is not None,
            ctx.channels_last,
        )
        return (
            grads[0] if need_input else None,
            grads[1].to(ctx.offset_dtype) if need_offset else None,
            grads[3] if need_weight else None,
            grad_output.sum((0, 2, 3)) if need_bias else None,
            grads[2].to(ctx.mask_dtype) if need_mask else None,
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


def _forward(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    sizes: list[int],
    backend: str,
    saving: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    geo = Geometry(*sizes)
    plain = backend == 'auto' and mask is None and _is_plain(offset)
    with torch.autocast(input.device.type, enabled=False):
        if saving or not plain:  # a backward pass needs what sampling leaves, whatever the offsets are
            output, saved = passes(backend).forward(input, offset, weight, bias, mask, geo)
        if plain:
            output = _plain(input, weight, bias, geo)
    return (output, *saved) if saving else (output, *_nothing(input))


def _is_plain(offset: Tensor) -> bool:
    # Asking a GPU would make the host wait for it, every time.
    return offset.device.type == 'cpu' and offset.numel() > 0 and not bool(offset.any())


def _plain(input: Tensor, weight: Tensor, bias: Tensor | None, geo: Geometry) -> Tensor:
    """What the layer computed before it was upgraded, to the bit."""
    stride, padding = (geo.stride_h, geo.stride_w), (geo.pad_h, geo.pad_w)
    return F.conv2d(input, weight, bias, stride, padding, (geo.dil_h, geo.dil_w), geo.groups)


def _forward_fake(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    sizes: list[int],
    backend: str,
    saving: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    geo = Geometry(*sizes)
    shape = (geo.N, geo.O, geo.Ho, geo.Wo)
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=matrices.format_of(input))
    return (output, *(passes(backend).like_saved(input, offset, mask, geo) if saving else _nothing(input)))


def _nothing(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return input.new_empty(0), input.new_empty(0), input.new_empty(0)


def _backward(
    saved0: Tensor,
    saved1: Tensor,
    saved2: Tensor,
    weight: Tensor,
    grad_output: Tensor,
    sizes: list[int],
    backend: str,
    wanted: list[bool],
    masked: bool,
    channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    saved = (saved0, saved1, saved2)
    with torch.autocast(saved0.device.type, enabled=False):
        grads = passes(backend).backward(saved, weight, grad_output, Geometry(*sizes), Wanted(*wanted))
    grad_input = saved0.new_empty(0)
    if grads.input is not None:
        grad_input = grads.input.to(weight.dtype).contiguous(memory_format=_memory_format(channels_last))
    grad_offset, grad_mask, grad_weight = (saved0.new_empty(0) if g is None else g for g in grads[1:])
    return grad_input, grad_offset, grad_mask, grad_weight


def _backward_fake(
    saved0: Tensor,
    saved1: Tensor,
    saved2: Tensor,
    weight: Tensor,
    grad_output: Tensor,
    sizes: list[int],
    backend: str,
    wanted: list[bool],
    masked: bool,
    channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    geo = Geometry(*sizes)
    need_input, need_plan, need_weight = wanted
    shapes = {
        'input': (geo.N, geo.C, geo.H, geo.W) if need_input else (0,),
        'offset': (geo.N, 2 * geo.G * geo.K, geo.Ho, geo.Wo) if need_plan else (0,),
        'mask': (geo.N, geo.G * geo.K, geo.Ho, geo.Wo) if need_plan and masked else (0,),
    }
    coord = torch.promote_types(weight.dtype, torch.float32)
    grad_input = weight.new_empty(shapes['input'])
    if need_input:
        grad_input = grad_input.contiguous(memory_format=_memory_format(channels_last))
    return (
        grad_input,
        weight.new_empty(shapes['offset'], dtype=coord),
        weight.new_empty(shapes['mask'], dtype=coord),
        torch.empty_like(matrices.dense(weight)) if need_weight else weight.new_empty(0),
    )


def _memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _is_compiling() -> bool:
    is_compiling = getattr(torch.compiler, 'is_compiling', None)  # torch >= 2.2
    return bool(is_compiling is not None and is_compiling())


def _register() -> None:
    _LIBRARY.impl('deform_conv2d', _forward, 'CompositeExplicitAutograd')
    _LIBRARY.impl('deform_conv2d_backward', _backward, 'CompositeExplicitAutograd')
    # Names since torch 2.4 and 2.2; before them, fake tensors took what was registered for meta tensors.
    fake = getattr(torch.library, 'register_fake', None) or getattr(torch.library, 'impl_abstract', None)
    for name, shapes in (('deform_conv2d', _forward_fake), ('deform_conv2d_backward', _backward_fake)):
        if fake is not None:
            fake(f'mmdeform_upgrade::{name}')(shapes)
        else:
            _LIBRARY.impl(name, shapes, 'Meta')
    flops.register()


_register()
