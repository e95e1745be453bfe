# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""An upgrade's config without its upgrade, or with fewer layers: pure functions from config to config."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS
from torch import Tensor

from ..config import BUILDER, TRAIN_OFFSETS
from ..config.rates import without_offset_optimizer
from ..config.settings import settings_of, type_name
from ..mm.preflight import build_network

# Hooks that an upgrade alone needs, and all of this package's types in configs.
UPGRADE_HOOKS = ('DeformUpgradeHook', 'OffsetLoggerHook')
OWN_TYPES = tuple(
    name
    for registry in (HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS)
    for name, registered in registry.module_dict.items()
    if getattr(registered, '__module__', '').startswith('mmdeform_upgrade.')
)
_SETTINGS = ('base_type', 'targets', 'exclude', 'deform_groups')


def without_plugin(cfg: Config) -> Config:
    """``cfg`` without this package's hooks and import, and with nothing to load; its components are left as they are."""
    return _without_import(_without_hooks(cfg, OWN_TYPES))


def without_upgrade_hooks(cfg: Config) -> Config:
    """``cfg`` without the hooks that a network with no upgraded layer has no use for, and with nothing to load."""
    return _without_hooks(cfg, UPGRADE_HOOKS)


def own_types(node: Any) -> list[str]:
    """This package's types that a config names, anywhere."""
    return sorted({*_types(node)} & {*OWN_TYPES})


def differing(cfg: Config, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Names that the network of a config and a state dict do not both have, in the same shape."""
    built = {key: value.shape for key, value in build_network(cfg).state_dict().items()}
    given = {key: value.shape for key, value in state_dict.items()}
    return sorted(key for key in {*built, *given} if built.get(key) != given.get(key))


def _types(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        yield type_name(node.get('type', ''))
        node = node.values()
    elif not isinstance(node, (list, tuple)):
        return
    for value in node:
        yield from _types(value)


def _without_hooks(cfg: Config, names: Sequence[str]) -> Config:
    result = copy.deepcopy(cfg)
    result.load_from, result.resume = None, False
    if type_name(result.model.get('type', '')) == TRAIN_OFFSETS:
        result.model.type = result.model.pop('base_type')
    if result.get('optim_wrapper'):
        result.optim_wrapper = without_offset_optimizer(result.optim_wrapper)
    hooks = result.pop('custom_hooks', None) or []
    if hooks := [hook for hook in hooks if type_name(hook.get('type', '')) not in names]:
        result.custom_hooks = hooks
    return result


def _without_import(cfg: Config) -> Config:
    imports = cfg.pop('custom_imports', None) or {}
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else names
    if names := [name for name in names if name.split('.')[0] != 'mmdeform_upgrade']:
        cfg.custom_imports = {**imports, 'imports': names}
    return cfg


def component_without_upgrade(component: Mapping[str, Any]) -> dict[str, Any]:
    """A component's settings as the baseline had them: neither builder nor ``ZeroOffsetDCN`` switch."""
    plain = dict(settings_of(component))
    if type_name(plain.get('type', '')) == BUILDER:
        plain['type'] = plain['base_type']
        for key in _SETTINGS:
            plain.pop(key, None)
    if isinstance(plain.get('dcn'), Mapping) and type_name(plain['dcn'].get('type', '')) == 'ZeroOffsetDCN':
        plain.pop('dcn')
        plain.pop('stage_with_dcn', None)
    return plain


def with_layers(cfg: Config, layers: Mapping[str, int]) -> Config:
    """``cfg`` with exactly these upgraded layers.

    Args:
        cfg: config of an upgrade; it is not changed.
        layers: dotted names in the network to deform groups; with none, the result is a baseline's config.
    """
    result = copy.deepcopy(cfg) if layers else without_upgrade_hooks(cfg)
    _rewrite(result.model, '', layers)
    return result if layers or own_types(result._cfg_dict.to_dict()) else _without_import(result)


def _rewrite(node: Any, prefix: str, layers: Mapping[str, int]) -> None:
    for key, value in list(node.items()):
        if not isinstance(value, dict):
            continue
        _rewrite(value, f'{prefix}{key}.', layers)
        plain = component_without_upgrade(value)
        if plain == settings_of(value):
            continue
        path = f'{prefix}{key}.'
        inside = {name.removeprefix(path): count for name, count in layers.items() if name.startswith(path)}
        value.clear()
        value.update(plain)
        if len(counts := set(inside.values())) == 1:
            value.update(targets=list(inside), deform_groups=counts.pop())
        elif inside:
            value.update(targets={re.escape(name): count for name, count in inside.items()})
        if inside:
            value.update(type=BUILDER, base_type=plain['type'])
