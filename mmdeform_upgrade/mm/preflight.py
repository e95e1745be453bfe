# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What an upgraded config will do, before anything is written: its network built, the baseline fitted to it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from ..analysis.look import check_device
from ..checkpoint import (
    clean_state_dict,
    import_baseline,
    is_offset_key,
    refuse_delta,
    refuse_lost_offsets,
    remap_state_dict,
)
from ..config import HOOK, describe_schedule, read_config
from ..config.settings import type_name
from ..config.upgrade import beginnings
from ..errors import CheckpointError, ConfigError, listed, naming
from ..importers import OWN_NAMES
from ..layers import upgraded_layers
from ..readers import read_checkpoint
from ..upgrade import UpgradeReport
from .loading import local_path, refuse_to_overwrite
from .rates import building, describe_rates


def build_network(cfg: Config) -> nn.Module:
    """The network of ``cfg.model`` on the CPU, without reading any weights.

    Raises:
        ConfigError: it cannot be built.
    """
    scope = cfg.get('default_scope', 'mmengine')
    if scope is not None:  # configs of classes have none: each registry is then asked for what it holds itself
        if scope.isidentifier() and find_spec(scope) is None:
            raise ConfigError(f'the config has default_scope={scope!r}, and the package {scope} is not installed')
        init_default_scope(scope)
    with building('model'):  # quietly: the builder logs the report that a plan prints
        return MODELS.build(copy.deepcopy(cfg.model))


def load_network(config: str, checkpoint: str, device: str = 'cpu') -> nn.Module:
    """A trained network with its config, as the frameworks' inference wants it; its checkpoint read safely.

    Raises:
        ConfigError: the network cannot be built, or there is no such device.
        CheckpointError: the checkpoint is an upgrade's and the config is not, or it does not fit the network.
    """
    cfg = read_config(config)
    check_device(device)
    model: Any = build_network(cfg)
    whole = read_checkpoint(checkpoint)
    with naming(checkpoint):
        refuse_delta(whole)
    state_dict, network = clean_state_dict(whole['state_dict']), model.state_dict()
    refuse_lost_offsets(checkpoint, state_dict, network)
    with naming(checkpoint):
        model.load_state_dict(remap_state_dict(state_dict, network))
    model.cfg = cfg
    return model.to(device).eval()


def plan_upgrade(before: Config, after: Config, checkpoint: str) -> tuple[nn.Module, str]:
    """Build the upgraded network and fit the baseline to it; with what will be done, for a person to check.

    Raises:
        UpgradeError: whatever would stop the run: targets, the checkpoint, the schedule.
    """
    network = build_network(after)
    imported = import_baseline(local_path(checkpoint), network)
    added = len(imported.added)
    if trained := [key for key in imported.state_dict if is_offset_key(key) and key not in imported.added]:
        own = build_network(before).state_dict()
        if new := [key for key in trained if key not in own]:
            raise CheckpointError(
                f'{checkpoint} is the checkpoint of an upgrade, which has these offsets already: {listed(new, 2)}: give the '
                'checkpoint of the baseline; to train the upgrade on, set load_from in its own config'
            )
    aside = all(name.startswith('auxiliary_head') for name in upgraded_layers(network))
    lines = [
        str(UpgradeReport.of(network)),
        *(['auxiliary heads are left out in inference: no prediction changes; name another --part'] if aside else []),
        *([f'imported {imported}'] if imported.format != OWN_NAMES else []),
        f'checkpoint: {len(imported.state_dict) - added} tensors fit, {added} offset tensors start at zero',
        f'schedule before: {describe_schedule(before)}',
        f'schedule after:  {describe_schedule(after)}',
        f'rates of the built optimizer: {describe_rates(network, after)}',
        *(
            f'a trained model is past it: model.{".".join(map(str, path))}={past}'
            for path, past in beginnings(before.model).items()
        ),
    ]
    return network, '\n'.join(lines)


def check_before_training(cfg: Config) -> None:
    """Refuse what the run of an upgrade would stumble over, before its runner writes anything or reads any data.

    A runner makes its folder before it builds its network, so this builds one more, and reads the baseline once more: a
    second, for Faster R-CNN on a ResNet-50.

    Raises:
        UpgradeError: targets, the checkpoint, or a folder whose checkpoints the run would write over.
    """
    hooks = {type_name(hook.get('type', '')) for hook in cfg.get('custom_hooks') or [] if isinstance(hook, Mapping)}
    if not cfg.get('load_from') or cfg.get('resume'):
        return
    checkpoints = (cfg.get('default_hooks') or {}).get('checkpoint')
    refuse_to_overwrite(cfg.load_from, cfg.work_dir, cfg, [checkpoints] if checkpoints else [])
    if HOOK in hooks:
        import_baseline(local_path(cfg.load_from), build_network(cfg))
