# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A baseline's config, upgraded: pure functions from config to config, and the short file that says the same."""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional

from .errors import ConfigError
from .schedule import rate_changes, schedule_changes, type_name
from .targets import Targets, check_kind
from .training_config import check_training_config

if TYPE_CHECKING:
    from mmengine.config import Config

BUILDER = 'DeformUpgrade'
TRAIN_OFFSETS = 'TrainOffsets'
HOOK = 'DeformUpgradeHook'
RESUME_HOOK = 'RunGuardHook'
SCHEME = 'baseline://'  # MMEngine's loaders import what stands behind it


def upgrade_config(
    cfg: Config,
    *,
    load_from: str,
    targets: Targets = 'last:3',
    epoch_ratio: float = 0.25,
    part: str = 'backbone',
    exclude: Targets = (),
    deform_groups: int = 1,
    lr_mult: float = 1.0,
    offset_lr_mult: Optional[float] = None,
    offset_optimizer: Optional[str] = None,
    offset_lr: Optional[float] = None,
    train: str = 'all',
) -> Config:
    """The config that fine-tunes the upgrade of a trained baseline.

    Args:
        cfg: the baseline's config; it is not changed.
        load_from: the baseline's checkpoint.
        targets: which convolutions of the part, see :func:`find_targets`.
        epoch_ratio: new training length over the old, in (0, 1]; see :func:`shorten_schedule`.
        part: the component of ``cfg.model`` to upgrade: ``'backbone'``, ``'neck'``, ``'bbox_head'``, or dotted.
        exclude: convolutions to leave alone.
        deform_groups: groups of channels that share offsets.
        lr_mult: learning rate of the fine-tune over the baseline's; 1 in the paper.
        offset_lr_mult: learning rate of the offset branches over that of the fine-tune.
        offset_optimizer: ``'adam'`` or ``'same'``, see :func:`rate_changes`.
        offset_lr: learning rate of the offsets' Adam.
        train: ``'all'``, or ``'offsets'`` alone, see :func:`train_offsets_`.

    Returns:
        Config: builds with plain ``Runner.from_cfg``.

    Raises:
        ConfigError: no such part, it is upgraded already, or schedule or rates cannot be changed as asked.
    """
    changes = upgrade_changes(
        cfg,
        load_from=load_from,
        targets=targets,
        epoch_ratio=epoch_ratio,
        part=part,
        exclude=exclude,
        deform_groups=deform_groups,
        lr_mult=lr_mult,
        offset_lr_mult=offset_lr_mult,
        offset_optimizer=offset_optimizer,
        offset_lr=offset_lr,
        train=train,
    )
    upgraded = copy.deepcopy(cfg)
    upgraded.merge_from_dict(changes)
    return upgraded


def upgrade_changes(
    cfg: Mapping[str, Any],
    *,
    load_from: str,
    targets: Targets,
    epoch_ratio: float,
    part: str = 'backbone',
    exclude: Targets = (),
    deform_groups: int = 1,
    lr_mult: float = 1.0,
    offset_lr_mult: Optional[float] = None,
    offset_optimizer: Optional[str] = None,
    offset_lr: Optional[float] = None,
    train: str = 'all',
) -> Dict[str, Any]:
    """What :func:`upgrade_config` changes, as a dict that merges into ``cfg``; the keys of a short config file."""
    if not isinstance(load_from, (str, os.PathLike)) or not os.fspath(load_from):
        raise ConfigError(f'load_from={load_from!r}: give the path of the trained baseline')
    changes = retrain_changes(cfg, targets=targets, part=part, exclude=exclude, deform_groups=deform_groups)
    if train not in ('all', 'offsets'):
        raise ConfigError(f"train={train!r}: expected 'all' or 'offsets'")
    if train == 'offsets':
        changes['model'] = {'type': TRAIN_OFFSETS, 'base_type': cfg['model'].get('type'), **changes['model']}
    # The baseline brings all weights.
    if is_download(_component(cfg, part).get('init_cfg')):
        _inside(changes['model'], part)['init_cfg'] = None
    if cfg['model'].get('pretrained'):
        changes['model']['pretrained'] = None
    changes['load_from'] = os.fspath(load_from)
    changes.update(schedule_changes(cfg, epoch_ratio))
    changes.update(rate_changes(cfg, lr_mult, offset_lr_mult, offset_optimizer, offset_lr))
    # A list replaces the inherited one, so the base's hooks are named again.
    changes['custom_hooks'] = [*changes.get('custom_hooks', cfg.get('custom_hooks') or []), {'type': HOOK}]
    return changes


def retrain_changes(
    cfg: Mapping[str, Any], *, targets: Targets, part: str = 'backbone', exclude: Targets = (), deform_groups: int = 1
) -> Dict[str, Any]:
    """The deformable network on the baseline's schedule and initial weights: what an upgrade is measured against."""
    check_training_config(cfg)
    check_kind(targets, 'targets')
    check_kind(exclude, 'exclude')
    if not isinstance(deform_groups, int) or isinstance(deform_groups, bool) or deform_groups < 1:
        raise ConfigError(f'deform_groups={deform_groups!r}: expected a whole number of at least 1')
    changed: Dict[str, Any] = {'type': BUILDER, 'base_type': _component(cfg, part)['type'], 'targets': _plain(targets)}
    if exclude:
        changed['exclude'] = _plain(exclude)
    if deform_groups != 1:
        changed['deform_groups'] = deform_groups
    model: Dict[str, Any] = changed
    for key in reversed(part.split('.')):
        model = {key: model}
    return {'custom_imports': _imports(cfg), 'model': model}


def control_changes(
    cfg: Mapping[str, Any], *, load_from: str, epoch_ratio: float, lr_mult: float = 1.0
) -> Dict[str, Any]:
    """The honest control of an upgrade: the baseline trained on for the same length, with no layer changed.

    It sees the very batches of the upgrade, where both have ``RunGuardHook``.
    """
    changes = {**schedule_changes(cfg, epoch_ratio), **rate_changes(cfg, lr_mult), 'load_from': load_from}
    hooks = list(changes.get('custom_hooks', cfg.get('custom_hooks') or []))
    if not any(type_name(hook.get('type', '')) == RESUME_HOOK for hook in hooks if isinstance(hook, Mapping)):
        changes['custom_hooks'] = [*hooks, {'type': RESUME_HOOK}]
    changes['custom_imports'] = _imports(cfg)
    return changes


def inheriting_text(base: str, out: str, changes: Mapping[str, Any]) -> str:
    """Text of a config file at ``out`` that inherits the one at ``base`` and holds nothing but ``changes``."""
    from mmengine.config import Config

    return f'_base_ = [{_base_entry(base, out)}]\n' + Config(dict(changes)).pretty_text


def find_config(name: str) -> str:
    """File of a config: a path as it is, ``'mmseg::deeplabv3/NAME.py'`` among the configs of an installed package.

    Raises:
        ConfigError: there is no such file or package.
    """
    package, external, inside = name.partition('::')
    if not external:
        if not os.path.isfile(name):
            raise ConfigError(f'there is no config file {name!r}')
        if not name.endswith(('.py', '.yml', '.yaml', '.json')):
            raise ConfigError(f'{name!r} is no config, which ends in .py: give the config first, then the checkpoint')
        return name
    path = os.path.join(_package_configs(package, name), inside)
    if not os.path.isfile(path):
        raise ConfigError(f'{name!r}: there is no config file {path!r}')
    return path


def is_lazy(path: str) -> bool:
    """Whether a config file is of MMEngine's pure Python kind, which a text ``_base_`` cannot inherit."""
    from mmengine.config import Config

    return '::' not in path and path.endswith('.py') and Config._is_lazy_import(path)


def read_config(name: str) -> Config:
    """The config that :func:`find_config` finds.

    Raises:
        ConfigError: also where it inherits from a file that is not there, imports a package that is not installed, or
            is no Python.
    """
    from mmengine.config import Config

    path = find_config(name)
    try:
        return Config.fromfile(path)
    except (ImportError, SyntaxError, OSError) as error:
        raise ConfigError(f'{name}: {error}') from error


def _package_configs(package: str, name: str) -> str:
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.origin:
        raise ConfigError(f'{name!r}: the package {package!r} is not installed')
    return os.path.join(os.path.dirname(spec.origin), '.mim', 'configs')


def _base_entry(base: str, out: str) -> str:
    from mmengine.config import Config

    package, external, inside = base.partition('::')
    if not external:
        return repr(os.path.relpath(base, os.path.dirname(os.path.abspath(out))))
    try:
        Config.fromstring(f'_base_ = [{base!r}]', '.py')
    except ImportError:  # MMEngine looks for mmseg as 'mmsegmentation', which onedl-mmsegmentation is not called
        return f"__import__({package!r}).__path__[0] + '/.mim/configs/{inside}'"
    return repr(base)


def _component(cfg: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    node: Any = cfg.get('model')
    if not isinstance(node, Mapping):
        raise ConfigError("the config has no 'model': give the config that the baseline was trained with")
    if not isinstance(part, str):
        raise ConfigError(f"part={part!r}: expected the name of a component, such as 'backbone'")
    for key in part.split('.'):
        parts = [name for name, value in node.items() if isinstance(value, Mapping) and 'type' in value]
        if not isinstance(node.get(key), Mapping) or 'type' not in node[key]:
            raise ConfigError(
                f'the model has no part {part!r} (looked for {key!r}): it has {", ".join(parts)}; name one of them'
            )
        node = node[key]
    if not node['type'] or not (isinstance(node['type'], str) or callable(node['type'])):
        raise ConfigError(f'model.{part}.type={node["type"]!r} is neither a name nor a class')
    if type_name(node['type']) == BUILDER:
        raise ConfigError(
            f'model.{part} is upgraded already (base_type={node.get("base_type")!r}, '
            f'targets={node.get("targets")!r}): start from the config of the baseline, or change targets '
            'there'
        )
    return node


def _inside(model: Dict[str, Any], part: str) -> Dict[str, Any]:
    for key in part.split('.'):
        model = model[key]
    return model


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
    if isinstance(targets, Mapping):
        return dict(targets)
    return targets if isinstance(targets, str) else list(targets)
