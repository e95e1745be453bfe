# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What is done with a trained baseline: the upgrade, and every plain alternative that starts from the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdeform_upgrade import find_targets, train_offsets_, upgrade_

Groups = dict[str, list[nn.Parameter]]


@dataclass(frozen=True)
class Arm:
    """How a fine-tune begins.

    Attributes:
        change: what is done to the backbone, given the targets; nothing for the control.
        trains: which parameters train, by name and module.
        offsets_alone: whether nothing but the offsets trains, and BatchNorm keeps its statistics.
    """

    change: Callable[[nn.Module, str], None] | None = None
    trains: Callable[[str, nn.Module], bool] | None = None
    offsets_alone: bool = False


def _upgrade(backbone: nn.Module, targets: str) -> None:
    upgrade_(backbone, targets)


def _dilate(backbone: nn.Module, targets: str) -> None:
    """Twice the dilation, and padding that keeps the map's size."""
    for name in find_targets(backbone, targets):
        conv = backbone.get_submodule(name)
        conv.padding = tuple(2 * p for p in conv.padding)
        conv.dilation = tuple(2 * d for d in conv.dilation)


def _pad_kernel(backbone: nn.Module, targets: str) -> None:
    """5x5 kernels whose new rim is zero: the same function, a wider reach."""
    for name in find_targets(backbone, targets):
        conv = backbone.get_submodule(name)
        dilation = conv.dilation[0]
        wide = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            5,
            conv.stride,
            2 * dilation,
            dilation,
            conv.groups,
            conv.bias is not None,
        ).to(conv.weight)
        with torch.no_grad():
            wide.weight.copy_(nn.functional.pad(conv.weight, (1, 1, 1, 1)))
            if conv.bias is not None:
                wide.bias.copy_(conv.bias)
        parent, _, leaf = name.rpartition('.')
        setattr(backbone.get_submodule(parent), leaf, wide)


ARMS: dict[str, Arm] = {
    'control': Arm(),
    'bn': Arm(trains=lambda name, module: isinstance(module, _BatchNorm) or name.endswith('bias')),
    'dilated': Arm(_dilate),
    '5x5': Arm(_pad_kernel),
    'upgraded': Arm(_upgrade),
    'offsets': Arm(_upgrade, offsets_alone=True),
}


def start(model: nn.Module, arm: str, targets: str) -> None:
    """Turn a baseline into an arm's network, in place; ``model.backbone`` is what changes."""
    chosen = ARMS[arm]
    if chosen.change is not None:
        chosen.change(model.backbone, targets)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f'{prefix}.{name}' if prefix else name
            parameter.requires_grad_(chosen.trains is None or chosen.trains(full, module))
    model.train()
    if chosen.offsets_alone:
        train_offsets_(model)


def groups(model: nn.Module) -> Groups:
    """What trains: the offset branches, and everything else."""
    found: Groups = {'offsets': [], 'rest': []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found['offsets' if 'conv_offset' in name else 'rest'].append(parameter)
    return {name: members for name, members in found.items() if members}


def offsets_rms(model: nn.Module, pictures: Tensor) -> dict[str, float]:
    """Root mean square of each layer's offsets in pixels of its input."""
    from mmdeform_upgrade.analysis.offsets import OffsetRecorder

    model.eval()
    with torch.no_grad(), OffsetRecorder(model) as recorder:
        model(pictures)
    return {name: float(record.offset.square().mean().sqrt()) for name, record in recorder.records.items()}
