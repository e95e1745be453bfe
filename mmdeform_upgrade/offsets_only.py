# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Training the offset branches alone: what an adapter is made with."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn

from .errors import TargetError
from .layers import upgraded_layers
from .targets import check_module


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
        if _keeps_buffers(module) and not _has_statistics(module):
            module.register_forward_pre_hook(_note_buffers, prepend=True)
            module.register_forward_hook(_put_back_buffers)
    model.train = MethodType(_train, model)  # type: ignore[method-assign]
    model.train(model.training)
    return names


def _train(model: nn.Module, mode: bool = True) -> nn.Module:
    # Of the network, since synchronised batch norms are converted, and so replaced, after it was built.
    type(model).train(model, mode)
    for module in model.modules():
        if _has_statistics(module):
            module.eval()
    return model


def _has_statistics(module: nn.Module) -> bool:
    return 'running_mean' in module._buffers


def _keeps_buffers(module: nn.Module) -> bool:
    return bool(set(module._buffers) - module._non_persistent_buffers_set)


def _note_buffers(module: nn.Module, args: Any) -> None:
    module.__dict__['_noted'] = {name: None if b is None else b.clone() for name, b in module._buffers.items()}


def _put_back_buffers(module: nn.Module, args: Any, output: Any) -> None:
    module._buffers.update(module.__dict__.pop('_noted', {}))
