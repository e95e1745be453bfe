# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Training the offset branches alone: what an adapter is made with."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TargetError
from ..layers import upgraded_layers
from ..targets import check_module

_NORMS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)  # of all kinds in PyTorch, which inherit the first


def train_offsets_(model: nn.Module) -> list[str]:
    """Let the offset branches train and nothing else; every other parameter and buffer stays what it is, to the bit.

    The other parameters require no gradient. Normalisations with running statistics compute in evaluation mode whatever
    ``model.train()`` says, and other buffers that a forward pass counts up are put back after it. Dropout and
    stochastic depth hold no state and follow ``model.train()`` as before. Call it before the network is wrapped and
    its optimizer is built.

    Args:
        model: an upgraded network, changed in place.

    Returns:
        Dotted names of the layers whose offsets train.

    Raises:
        TargetError: the network has no deformable layer, or all of them are frozen; it was left as it was.
    """
    check_module(model)
    model.train(model.training)  # some backbones freeze their first stages only there
    layers = upgraded_layers(model)
    names = [name for name, layer in layers.items() if layer.conv_offset.weight.requires_grad]
    if not names:
        found = f'those of {", ".join(layers)} are frozen: lower frozen_stages' if layers else 'it has no ZeroOffsetDCN'
        raise TargetError(
            f'{type(model).__name__} has no offsets that could train ({found}); upgrade other convolutions first'
        )
    offsets = {id(p) for name in names for p in layers[name].conv_offset.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in offsets:
            parameter.requires_grad_(False)
    for module in model.modules():
        kept = module._buffers.keys() - module._non_persistent_buffers_set
        if kept and not _has_statistics(module):
            module.register_forward_pre_hook(_note_buffers, prepend=True)
            module.register_forward_hook(_put_back_buffers)
    model.train = partial(_train, model)  # type: ignore[method-assign]  # no method, which pickle would look for by name
    model.train(model.training)
    return names


def _train(model: nn.Module, mode: bool = True) -> nn.Module:
    # Of the network, since synchronised batch norms are converted, and so replaced, after it was built.
    type(model).train(model, mode)
    for module in model.modules():
        if _has_statistics(module):
            module.eval()
        if type(module).forward in _NORMS and _without_graph not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_without_graph)
            module.register_forward_hook(_with_gradient, prepend=True)
    return model


def _without_graph(norm: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Of a batch norm in evaluation mode, PyTorch keeps the input for gradients of the weights, which nobody wants."""
    fixed = not norm.training and norm.running_var is not None and not any(p.requires_grad for p in norm.parameters())
    if not (fixed and args[0].requires_grad and torch.is_grad_enabled()) or torch.jit.is_tracing():
        return None
    norm.__dict__['_differentiated'] = args[0]
    return (args[0].detach(),)


def _with_gradient(norm: Any, args: Any, output: Tensor) -> Tensor | None:
    input = norm.__dict__.pop('_differentiated', None)
    if input is None:
        return None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    scaled: Tensor = _Scaled.apply(input, output, scale.view(-1, *[1] * (input.dim() - 2)))
    return scaled


class _Scaled(torch.autograd.Function):
    """``output``, as ``scale`` times ``input`` and a constant."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, output: Tensor, scale: Tensor) -> Tensor:
        ctx.mark_dirty(output)  # so that it may be changed in place, as a ReLU does
        ctx.save_for_backward(scale)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return (grad_output * scale).to(grad_output.dtype), None, None


def _has_statistics(module: nn.Module) -> bool:
    return 'running_mean' in module._buffers


def _note_buffers(module: nn.Module, args: Any) -> None:
    module.__dict__['_noted'] = {name: None if b is None else b.clone() for name, b in module._buffers.items()}


def _put_back_buffers(module: nn.Module, args: Any, output: Any) -> None:
    module._buffers.update(module.__dict__.pop('_noted', {}))
