# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Plan, check everything, replace, report; and back. Works on any ``nn.Module``."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from .errors import TargetError, UpgradeError
from .layers import ZeroOffsetDCN, unwrapped_name, upgraded_layers, why_not_upgradable
from .targets import Targets, check_module, deform_groups_of


@dataclass(frozen=True)
class LayerChange:
    """One replaced convolution: its geometry, and numbers of parameters."""

    name: str
    shape: str
    dilation: tuple[int, ...]
    groups: int
    deform_groups: int
    weights_before: int
    weights_after: int
    offset_biases: int

    @classmethod
    def of(cls, name: str, layer: ZeroOffsetDCN) -> LayerChange:
        """The change that made a layer."""
        (kh, kw), before = layer.kernel_size, layer.weight.numel()
        return cls(
            name,
            f'{layer.in_channels}->{layer.out_channels} {kh}x{kw} stride {_side(layer.stride)} dilation {_side(layer.dilation)}',
            layer.dilation,
            layer.groups,
            layer.deform_groups,
            before,
            before + layer.conv_offset.weight.numel(),
            layer.conv_offset.bias.numel(),
        )

    @property
    def added(self) -> int:
        return self.weights_after - self.weights_before + self.offset_biases

    def __str__(self) -> str:
        weights = f'{self.weights_before:,} -> {self.weights_after:,}'.replace(',', ' ')
        return f'{self.shape:<34} weights {weights}, offset biases {self.offset_biases}'


def _side(pair: tuple[int, ...]) -> str:
    return str(pair[0]) if len(set(pair)) == 1 else 'x'.join(map(str, pair))


@dataclass(frozen=True)
class UpgradeReport:
    """What ``upgrade_`` did: the layers in registration order and the model's parameters before and after."""

    layers: tuple[LayerChange, ...]
    parameters_before: int
    parameters_after: int

    @classmethod
    def of(cls, model: nn.Module, names: Collection[str] | None = None) -> UpgradeReport:
        """The report of an upgraded network; of all its deformable layers, unless ``names`` are those that are new."""
        found = upgraded_layers(model).items()
        layers = tuple(LayerChange.of(name, layer) for name, layer in found if names is None or name in names)
        after = sum(parameter.numel() for parameter in model.parameters())  # shared ones once
        return cls(layers, after - sum(layer.added for layer in layers), after)

    @property
    def names(self) -> list[str]:
        """Dotted names of the upgraded layers."""
        return [layer.name for layer in self.layers]

    def __str__(self) -> str:
        width = max(len(name) for name in self.names)
        totals = f'{self.parameters_before:,} -> {self.parameters_after:,}'.replace(',', ' ')
        growth = 100 * (self.parameters_after / self.parameters_before - 1)
        return '\n'.join(
            (
                f'{len(self.layers)} convolution{"s" * (len(self.layers) > 1)} to ZeroOffsetDCN:',
                *(f'  {layer.name:<{width}}  {layer}' for layer in self.layers),
                f'parameters in all: {totals} (+{growth:.2f} %)',
            )
        )


def upgrade_(
    model: nn.Module,
    targets: Targets = 'last:3',
    *,
    exclude: Targets = (),
    deform_groups: int = 1,
) -> UpgradeReport:
    """Replace convolutions of ``model``, in place, by deformable ones that compute the same (paper, section 3).

    Everything is checked first: a refused call leaves the model untouched. The new layers hold the very parameters of
    the old ones, so optimizers, tied weights and state-dict keys stay valid; build the optimizer afterwards all the
    same, or it will not know the offset branches.

    Other threads may run the model meanwhile: each forward finds the old layer or the new one at each place, and both
    compute the same. Moving it to another device or dtype meanwhile is not safe.

    Args:
        model: any module; a convolution used in several places is replaced in all of them.
        targets: see :func:`find_targets`.
        exclude: see :func:`find_targets`.
        deform_groups: G, groups of channels that share offsets; a mapping of ``targets`` says it for each.

    Returns:
        UpgradeReport: the layers and the parameter counts; ``print`` it.

    Raises:
        TargetError: no match, a match that cannot be upgraded, or a frozen target.
    """
    groups = deform_groups_of(model, targets, exclude, deform_groups)
    modules = dict(model.named_modules())
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in modules.values()):
        raise TargetError(
            'upgrade a network before DistributedDataParallel wraps it, which would synchronise no offsets'
        )
    problems = [f'{name}: {why}' for name, count in groups.items() if (why := why_not_upgradable(modules[name], count))]
    problems += [
        f'{name}: its weight is frozen (requires_grad=False), so its offsets would never train; lower '
        'frozen_stages or exclude it'
        for name in groups
        if not modules[name].weight.requires_grad
    ]
    if problems:
        raise TargetError('nothing was upgraded:\n  ' + '\n  '.join(problems))
    new: dict[nn.Module, nn.Module] = {
        modules[name]: ZeroOffsetDCN.from_conv(modules[name], count) for name, count in groups.items()
    }
    replace_modules(model, new)
    return UpgradeReport.of(model, {unwrapped_name(name) for name in groups})


def revert_(model: nn.Module, *, drop: Collection[str] = ()) -> list[str]:
    """Turn deformable layers whose offsets are exactly zero back into plain convolutions, in place.

    Args:
        model: any module.
        drop: dotted names of layers that go back although their offsets have moved, which changes the output.

    Returns:
        Names of the reverted layers.

    Raises:
        UpgradeError: the model has no ``ZeroOffsetDCN`` at all, or none of a name in ``drop``; nothing was changed.
    """
    check_module(model)
    if isinstance(drop, str) or not isinstance(drop, Collection) or not all(isinstance(name, str) for name in drop):
        raise UpgradeError(f"drop={drop!r} is no sequence of names: give a list, such as ['layer4.2.conv2']")
    if isinstance(model, ZeroOffsetDCN):
        raise UpgradeError('a lone ZeroOffsetDCN cannot be replaced where it is used: take its to_conv()')
    layers = upgraded_layers(model)
    if not layers:
        raise UpgradeError(f'{type(model).__name__} has no ZeroOffsetDCN: there is nothing to revert')
    unknown = [name for name in drop if name not in layers]
    if unknown:
        raise UpgradeError(f'drop names {", ".join(unknown)}, and the deformable layers are {", ".join(layers)}')
    chosen = {name: m for name, m in layers.items() if name in drop or m.conv_offset.is_zero()}
    replace_modules(model, {layer: layer.to_conv(force=True) for layer in chosen.values()})
    return list(chosen)


def replace_modules(model: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Put new modules in the places of old ones, wherever these are used: also in lists of them that a forward reads.

    They call the old ones' forward and backward hooks, whose handles stay valid.
    """
    for old, after in new.items():
        hooks = {
            name: kept
            for name, kept in vars(old).items()
            if re.match('_(forward|backward|is_full_backward)_.*hook', name)
        }
        vars(after).update(hooks)
    seen: set[int] = set()

    def current(child: Any) -> Any:
        if isinstance(child, nn.Module):
            return new.get(child, child)
        if type(child) is tuple:
            after = tuple(map(current, child))
            return after if any(a is not b for a, b in zip(after, child, strict=True)) else child
        if type(child) in (dict, OrderedDict, list) and id(child) not in seen:
            seen.add(id(child))
            for key, value in list(enumerate(child) if isinstance(child, list) else child.items()):
                if (after := current(value)) is not value:
                    child[key] = after
        return child

    for parent in list(model.modules()):
        current(vars(parent))  # `_modules` is in it
