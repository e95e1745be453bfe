# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Upgraded configs in the words of a stock mmdet or mmseg, where its own ``dcn`` switch can say them."""

from __future__ import annotations

import re

from mmengine.config import Config

from ..checkpoint import StateDict, remap_state_dict
from ..errors import UpgradeError, listed
from ..layers import upgraded_layers
from ..mm.preflight import build_network
from .rewrite import component_without_upgrade, differing, own_types, without_plugin


def stock_config(cfg: Config) -> Config | None:
    """The config with which an installation without this package loads an upgrade's checkpoint.

    mmdet's and mmseg's ResNets with Bottleneck blocks can make the 3x3 convolutions of whole stages deformable.

    Args:
        cfg: config of an upgrade; it is not changed.

    Returns:
        Config, or None where the layers, or anything else in the config, need this package
        (:func:`why_not_stock` says what).
    """
    return why_not_stock(cfg)[0]


def why_not_stock(cfg: Config, release: StateDict | None = None) -> tuple[Config | None, str]:
    """The stock config and an empty text, or None and the reason why there is none.

    Raises:
        CheckpointError: the network of the config is not that of the ``release``, if one is given.
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
    stock = without_plugin(cfg)
    backbone = component_without_upgrade(cfg.model.backbone)
    backbone.update(
        dcn=dict(type='DCN', deform_groups=groups.pop(), fallback_on_stride=False),
        stage_with_dcn=tuple(stage in stages for stage in range(1, 5))[: backbone.get('num_stages', 4)],
    )
    stock.model.backbone = backbone
    if own := own_types(stock._cfg_dict.to_dict()):
        return None, f'the config needs {", ".join(own)} of mmdeform_upgrade'
    try:
        odd = differing(stock, network.state_dict())
    except Exception as error:  # whatever a stock backbone says to settings that it does not know
        return None, f'the stock backbone refuses the switch: {type(error).__name__}: {error}'
    if odd:  # whole stages, Bottlenecks, groups
        return None, f'the switch changes whole stages, and the upgrade does not: they differ at {listed(odd, 4)}'
    return stock, ''
