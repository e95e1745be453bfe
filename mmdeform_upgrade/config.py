# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A baseline's config, upgraded: pure functions from config to config, and the short file that says the same."""
from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any, Dict, Mapping

from .errors import ConfigError
from .schedule import schedule_changes, type_name
from .targets import Targets

if TYPE_CHECKING:
    from mmengine.config import Config

BUILDER = 'DeformUpgrade'
HOOK = 'DeformUpgradeHook'


def upgrade_config(cfg: Config,
                   *,
                   load_from: str,
                   targets: Targets = 'last:3',
                   epoch_ratio: float = 0.25,
                   part: str = 'backbone',
                   exclude: Targets = (),
                   deform_groups: int = 1) -> Config:
    """The config that fine-tunes the upgrade of a trained baseline.

    Args:
        cfg: the baseline's config; it is not changed.
        load_from: the baseline's checkpoint.
        targets: which convolutions of the part, see :func:`find_targets`.
        epoch_ratio: new training length over the old, in (0, 1]; see :func:`shorten_schedule`.
        part: the component of ``cfg.model`` to upgrade: ``'backbone'``, ``'neck'``, ``'bbox_head'``, or dotted.
        exclude: convolutions to leave alone.
        deform_groups: groups of channels that share offsets.

    Returns:
        Config: builds with plain ``Runner.from_cfg``.

    Raises:
        ConfigError: no such part, it is upgraded already, or the schedule cannot be shortened as asked.
    """
    upgraded = copy.deepcopy(cfg)
    upgraded.merge_from_dict(upgrade_changes(cfg, load_from=load_from, targets=targets, epoch_ratio=epoch_ratio,
                                             part=part, exclude=exclude, deform_groups=deform_groups))
    return upgraded


def upgrade_changes(cfg: Mapping[str, Any], *, load_from: str, targets: Targets, epoch_ratio: float,
                    part: str = 'backbone', exclude: Targets = (), deform_groups: int = 1) -> Dict[str, Any]:
    """What :func:`upgrade_config` changes, as a dict that merges into ``cfg``; the keys of a short config file."""
    component = _component(cfg, part)
    changed: Dict[str, Any] = {'type': BUILDER, 'base_type': component['type'], 'targets': _plain(targets)}
    if exclude:
        changed['exclude'] = _plain(exclude)
    if deform_groups != 1:
        changed['deform_groups'] = deform_groups
    if is_download(component.get('init_cfg')):
        changed['init_cfg'] = None  # the baseline brings all weights
    model: Dict[str, Any] = changed
    for key in reversed(part.split('.')):
        model = {key: model}
    if cfg['model'].get('pretrained'):
        model['pretrained'] = None
    changes: Dict[str, Any] = {'custom_imports': _imports(cfg), 'model': model, 'load_from': load_from}
    changes.update(schedule_changes(cfg, epoch_ratio))
    # A list replaces the inherited one, so the base's hooks are named again.
    changes['custom_hooks'] = [*changes.get('custom_hooks', cfg.get('custom_hooks') or []), {'type': HOOK}]
    return changes


def control_changes(cfg: Mapping[str, Any], *, load_from: str, epoch_ratio: float) -> Dict[str, Any]:
    """The honest control of an upgrade: the baseline trained on for the same length, with no layer changed."""
    changes = schedule_changes(cfg, epoch_ratio)
    return {**changes, 'load_from': load_from}


def inheriting_text(base: str, out: str, changes: Mapping[str, Any]) -> str:
    """Text of a config file at ``out`` that inherits the one at ``base`` and holds nothing but ``changes``."""
    from mmengine.config import Config
    if '::' not in base:
        base = os.path.relpath(base, os.path.dirname(os.path.abspath(out)))
    return f"_base_ = ['{base}']\n" + Config(dict(changes)).pretty_text


def is_lazy(path: str) -> bool:
    """Whether a config file is of MMEngine's pure Python kind, which a text ``_base_`` cannot inherit."""
    from mmengine.config import Config
    return '::' not in path and path.endswith('.py') and Config._is_lazy_import(path)


def _component(cfg: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    node: Any = cfg.get('model')
    if not isinstance(node, Mapping):
        raise ConfigError("the config has no 'model': give the config that the baseline was trained with")
    for key in part.split('.'):
        parts = [name for name, value in node.items() if isinstance(value, Mapping) and 'type' in value]
        if not isinstance(node.get(key), Mapping) or 'type' not in node[key]:
            raise ConfigError(f"the model has no part {part!r} (looked for {key!r}): it has {', '.join(parts)}")
        node = node[key]
    if type_name(node['type']) == BUILDER:
        raise ConfigError(f'model.{part} is upgraded already (base_type={node.get("base_type")!r}, '
                          f'targets={node.get("targets")!r}): start from the config of the baseline, or change targets '
                          'there')
    return node


def _imports(cfg: Mapping[str, Any]) -> Dict[str, Any]:
    imports = cfg.get('custom_imports') or {}
    names: Any = imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if 'mmdeform_upgrade' not in names:
        names.append('mmdeform_upgrade')
    return {**imports, 'imports': names, 'allow_failed_imports': imports.get('allow_failed_imports', False)}


def is_download(init_cfg: Any) -> bool:
    """Whether an initialisation reads weights from a file or an address."""
    if not isinstance(init_cfg, Mapping):
        return False
    return type_name(init_cfg.get('type', '')) == 'Pretrained' or 'checkpoint' in init_cfg  # PVT's has no type


def _plain(targets: Targets) -> Any:
    return targets if isinstance(targets, str) else list(targets)
