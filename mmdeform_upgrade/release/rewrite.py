# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""An upgrade's config without its upgrade, with fewer layers, or in the words of a stock mmdet or mmseg."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS
from torch import Tensor

from ..checkpoint import StateDict, remap_state_dict
from ..config import BUILDER, TRAIN_OFFSETS
from ..config.rates import without_offset_optimizer
from ..config.settings import settings_of, type_name
from ..errors import UpgradeError, listed
from ..layers import upgraded_layers
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


def with_layers(cfg: Config, layers: Mapping[str, int], gone: Sequence[str] = UPGRADE_HOOKS) -> Config:
    """``cfg``, of an upgrade, with exactly these layers (dotted names to deform groups).

    With none it is a baseline's: without the hooks that are ``gone``, with nothing to load, and without the import of this
    package, unless something else in it needs that.
    """
    result = copy.deepcopy(cfg)
    _rewrite(result.model, '', layers)
    if layers:
        return result
    result.load_from, result.resume = None, False
    if type_name(result.model.get('type', '')) == TRAIN_OFFSETS:
        result.model.type = result.model.pop('base_type')
    if result.get('optim_wrapper'):
        result.optim_wrapper = without_offset_optimizer(result.optim_wrapper)
    hooks = result.pop('custom_hooks', None) or []
    if hooks := [hook for hook in hooks if type_name(hook.get('type', '')) not in gone]:
        result.custom_hooks = hooks
    if not own_types(result):
        imports = result.pop('custom_imports', None) or {}
        names = imports.get('imports') or []
        names = [names] if isinstance(names, str) else names
        if names := [name for name in names if name.split('.')[0] != 'mmdeform_upgrade']:
            result.custom_imports = {**imports, 'imports': names}
    return result


def own_types(cfg: Config) -> list[str]:
    """This package's types that a config names, anywhere."""
    return sorted({*_types(cfg._cfg_dict.to_dict())} & {*OWN_TYPES})


def _types(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        yield type_name(node.get('type', ''))
        node = node.values()
    elif not isinstance(node, (list, tuple)):
        return
    for value in node:
        yield from _types(value)


def differing(cfg: Config, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Names that the network of a config and a state dict do not both have, in the same shape."""
    built = {key: value.shape for key, value in build_network(cfg).state_dict().items()}
    given = {key: value.shape for key, value in state_dict.items()}
    return sorted(key for key in {*built, *given} if built.get(key) != given.get(key))


def _rewrite(node: Any, prefix: str, layers: Mapping[str, int]) -> None:
    for key, value in list(enumerate(node) if isinstance(node, list) else node.items()):
        path = f'{prefix}{key}.'
        if isinstance(value, (dict, list)):  # a list of a cascade's heads is a module of that name, too
            _rewrite(value, path, layers)
        if not isinstance(value, dict):
            continue
        plain = _without_upgrade(value)
        if plain == settings_of(value):
            continue
        if inside := {name.removeprefix(path): count for name, count in layers.items() if name.startswith(path)}:
            plain.update(type=BUILDER, base_type=plain['type'], targets=inside)
        value.clear()
        value.update(plain)


def _without_upgrade(component: Mapping[str, Any]) -> dict[str, Any]:
    """A component's settings as the baseline had them: neither builder nor ``ZeroOffsetDCN`` switch."""
    plain = dict(settings_of(component))
    if type_name(plain.get('type', '')) == BUILDER:
        plain['type'] = plain['base_type']
        plain = {key: value for key, value in plain.items() if key not in _SETTINGS}
    if isinstance(plain.get('dcn'), Mapping) and type_name(plain['dcn'].get('type', '')) == 'ZeroOffsetDCN':
        plain.pop('dcn')
        plain.pop('stage_with_dcn', None)
    return plain


def stock_config(cfg: Config, release: StateDict | None = None) -> tuple[Config | None, str]:
    """The config with which an installation without this package loads an upgrade's checkpoint.

    mmdet's and mmseg's ResNets with Bottleneck blocks can make the 3x3 convolutions of whole stages deformable.

    Args:
        cfg: config of an upgrade; it is not changed.
        release: its weights, to compare with.

    Returns:
        The config and an empty text; or None and the reason, where the layers, or anything else in the config, need this
        package.

    Raises:
        CheckpointError: the network of the config is not that of the ``release``.
    """
    try:  # not on the meta device, where many a network's drop_path cannot be computed
        network = build_network(cfg)
    except UpgradeError as error:
        return None, f'the config does not build: {error}'
    if release is not None:
        remap_state_dict(release, network.state_dict(), new=())
    layers = upgraded_layers(network)
    places = {name: re.fullmatch(r'backbone\.layer([1-4])\.\d+\.conv2', name) for name in layers}
    if odd := [name for name, place in places.items() if place is None]:
        return None, f'{odd[0]} is not the 3x3 convolution of a Bottleneck block in a stage of the backbone'
    if not layers:
        return None, 'the config upgrades nothing'
    stages = {int(place[1]) for place in places.values() if place}
    groups = {layer.deform_groups for layer in layers.values()}
    if len(groups) > 1:
        return None, f'the layers have different deform_groups ({sorted(groups)}), and the switch has one number'
    stock = with_layers(cfg, {}, gone=OWN_TYPES)
    stock.model.backbone.update(
        dcn=dict(type='DCN', deform_groups=groups.pop(), fallback_on_stride=False),
        stage_with_dcn=tuple(stage in stages for stage in range(1, 5))[: stock.model.backbone.get('num_stages', 4)],
    )
    if own := own_types(stock):
        return None, f'the config needs {", ".join(own)} of mmdeform_upgrade'
    try:
        odd = differing(stock, network.state_dict())
    except Exception as error:  # whatever a stock backbone says to settings that it does not know
        return None, f'the stock backbone refuses the switch: {type(error).__name__}: {error}'
    if odd:  # whole stages, Bottlenecks, groups
        return None, f'the switch changes whole stages, and the upgrade does not: they differ at {listed(odd, 4)}'
    return stock, ''
