# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A baseline's config, upgraded: pure functions from config to config."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..ops.geometry import is_whole
from ..targets import Targets, check_kind
from .own_run import own_run
from .rates import rate_changes
from .schedule import schedule_changes
from .settings import changed, is_count, settings_of, type_name

if TYPE_CHECKING:
    from mmengine.config import Config

BUILDER = 'DeformUpgrade'
TRAIN_OFFSETS = 'TrainOffsets'
HOOK = 'DeformUpgradeHook'
GUARD_HOOK = 'RunGuardHook'
_BEGINNINGS = {'initial_epoch': 0, 'warmup_iters': 1}  # BoxInst divides by it
SCHEME = 'baseline://'  # MMEngine's loaders import what stands behind it


def upgrade_config(
    cfg: Config, *, load_from: str, targets: Targets = 'last:3', epoch_ratio: float = 0.25, **settings: Any
) -> Config:
    """The config that fine-tunes the upgrade of a trained baseline; it builds with plain ``Runner.from_cfg``.

    ``cfg`` is not changed; the arguments are those of :func:`upgrade_changes`.

    Raises:
        ConfigError: no such part, it is upgraded already, or schedule or rates cannot be changed as asked.
    """
    settings.update(load_from=load_from, targets=targets, epoch_ratio=epoch_ratio)
    return changed(cfg, upgrade_changes(cfg, **settings))


def upgrade_changes(
    cfg: Mapping[str, Any],
    *,
    load_from: str,
    targets: Targets = 'last:3',
    part: str = 'backbone',
    exclude: Targets = (),
    deform_groups: int = 1,
    epoch_ratio: float = 0.25,
    max_iters: int | None = None,
    lr_mult: float = 1.0,
    offset_optimizer: str | None = None,
    offset_lr: float | None = None,
    offset_lr_mult: float | None = None,
    train: str = 'all',
    guard: bool = False,
    work_dir: str | None = None,
) -> dict[str, Any]:
    """What an upgrade changes, as a dict that merges into ``cfg``; the keys of a short config file.

    Args:
        cfg: the baseline's config.
        load_from: the baseline's checkpoint.
        targets: which convolutions of the part, see :func:`find_targets`.
        part: the component of ``cfg.model`` to upgrade: ``'backbone'``, ``'neck'``, ``'bbox_head'``, or dotted.
        exclude: convolutions to leave alone.
        deform_groups: groups of channels that share offsets.
        epoch_ratio: new training length over the old, in (0, 1]; see :func:`shorten_schedule`.
        max_iters: new training length in steps instead.
        lr_mult: learning rate of the fine-tune over the baseline's; 1 in the paper.
        offset_optimizer: ``'adam'`` or ``'same'``, see :func:`rate_changes`, as for the next two.
        offset_lr: learning rate of the offsets' Adam.
        offset_lr_mult: learning rate of the offset branches over that of the fine-tune.
        train: ``'all'``, or ``'offsets'`` for those alone.
        guard: also name the hook that makes a run safe.
        work_dir: folder of the run; unless given, the baseline's with ``-upgrade`` behind it, where its config names one.
    """
    if not isinstance(load_from, (str, os.PathLike)) or not os.fspath(load_from):
        raise ConfigError(f'load_from={load_from!r}: give the path of the trained baseline')
    cfg, own = _of_another_run(cfg, work_dir, load_from)
    changes = {**own, **_deformable(cfg, targets, part, exclude, deform_groups)}
    model = changes['model']
    _drop_downloads(cfg['model'], model)
    model.update(_what_trains(cfg['model'], train))
    rates = dict(offset_lr_mult=offset_lr_mult, offset_optimizer=offset_optimizer, offset_lr=offset_lr)
    _fine_tune(cfg, changes, load_from, epoch_ratio, max_iters, lr_mult=lr_mult, **rates)
    return _with_hooks(cfg, changes, [*[GUARD_HOOK] * guard, HOOK])


def retrain_changes(
    cfg: Mapping[str, Any],
    *,
    targets: Targets,
    part: str = 'backbone',
    exclude: Targets = (),
    deform_groups: int = 1,
    work_dir: str | None = None,
) -> dict[str, Any]:
    """The deformable network on the baseline's schedule and initial weights: what an upgrade is measured against."""
    cfg, own = _of_another_run(cfg, work_dir)
    return {**own, **_deformable(cfg, targets, part, exclude, deform_groups)}


def control_changes(
    cfg: Mapping[str, Any],
    *,
    load_from: str,
    epoch_ratio: float = 0.25,
    max_iters: int | None = None,
    lr_mult: float = 1.0,
    guard: bool = True,
    work_dir: str | None = None,
) -> dict[str, Any]:
    """The honest control of an upgrade: the baseline trained on for the same length, with no layer changed.

    Under the guard it sees the very batches of an upgrade that has it, too.
    """
    cfg, own = _of_another_run(cfg, work_dir, load_from)
    changes = {**own, 'custom_imports': _imports(cfg)}
    _drop_downloads({'model': cfg.get('model') or {}}, changes)
    _fine_tune(cfg, changes, load_from, epoch_ratio, max_iters, lr_mult=lr_mult)
    return _with_hooks(cfg, changes, [GUARD_HOOK] * guard)


def _of_another_run(
    cfg: Mapping[str, Any], work_dir: str | None, load_from: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A config with what another run changes of it, and these changes."""
    cfg = settings_of(cfg)
    own = own_run(cfg, work_dir, load_from)
    return {**cfg, **own}, own


def _deformable(
    cfg: Mapping[str, Any], targets: Targets, part: str, exclude: Targets, deform_groups: int
) -> dict[str, Any]:
    check_kind(targets, 'targets')
    check_kind(exclude, 'exclude')
    if not is_whole(deform_groups, 1):
        raise ConfigError(f'deform_groups={deform_groups!r}: expected a whole number of at least 1')
    component = _component(cfg, part)
    if taken := [key for key in ('base_type', 'targets', 'exclude', 'deform_groups') if key in component]:
        raise ConfigError(
            f'model.{part} ({type_name(component["type"])}) has a setting of its own named {taken[0]!r}, which {BUILDER} '
            'would take for itself: upgrade another part, or register a subclass of it whose setting has another name'
        )
    model: dict[str, Any] = {'type': BUILDER, 'base_type': _scoped_type(cfg, part), 'targets': _plain(targets)}
    if exclude:
        model['exclude'] = _plain(exclude)
    if deform_groups != 1:
        model['deform_groups'] = deform_groups
    for key in reversed(part.split('.')):
        model = {key: model}
    return {'custom_imports': _imports(cfg), 'model': model}


def _what_trains(model: Mapping[str, Any], train: str) -> dict[str, Any]:
    if train not in ('all', 'offsets'):
        raise ConfigError(f"train={train!r}: expected 'all' or 'offsets'")
    offsets_alone = type_name(model.get('type', '')) == TRAIN_OFFSETS
    if offsets_alone and train == 'all':
        raise ConfigError(
            f"the config trains the offsets alone (model.type='{TRAIN_OFFSETS}'): give train='offsets', or start from a "
            'config that trains everything'
        )
    return {} if train == 'all' or offsets_alone else {'type': TRAIN_OFFSETS, 'base_type': model['type']}


def _fine_tune(
    cfg: Mapping[str, Any],
    changes: dict[str, Any],
    load_from: str,
    epoch_ratio: float,
    max_iters: int | None,
    **rates: Any,
) -> None:
    schedule = schedule_changes(cfg, epoch_ratio, max_iters)
    hooks = changes.get('default_hooks', {})
    for name, hook in schedule.get('default_hooks', {}).items():
        hooks[name] = {**hooks.get(name, {}), **hook}
    changes.update(schedule, load_from=os.fspath(load_from), **({'default_hooks': hooks} if hooks else {}))
    changes.update(rate_changes(cfg, **rates, schedulers=changes.get('param_scheduler')))
    settings = settings_of(cfg.get('model') or {})
    for (*above, last), value in beginnings(settings).items():
        node: Any = changes.setdefault('model', {})
        known: Any = settings
        for key in above:
            known = known[key]
            if isinstance(node, dict) and key not in node:  # a list replaces the inherited one, so it is written whole
                node[key] = copy.deepcopy(known) if isinstance(known, (list, tuple)) else {}
            node = node[key]
        node[last] = value


def beginnings(settings: Any) -> dict[tuple[str | int, ...], int]:
    """Settings of a model, by path, that have its first epochs or steps train otherwise, as their values when these are
    over: TOOD's ``initial_epoch``, and ``warmup_iters`` of BoxInst's loss and of DropBlock. A trained model is past them.
    """
    found: dict[tuple[str | int, ...], int] = {}
    if not isinstance(settings, Mapping):
        settings = dict(enumerate(settings))
    for key, value in settings.items():
        if isinstance(value, (Mapping, list, tuple)):
            found.update({(key, *path): past for path, past in beginnings(value).items()})
        elif key in _BEGINNINGS and is_count(value) and value > _BEGINNINGS[key]:
            found[(key,)] = _BEGINNINGS[key]
    if type_name(settings.get('type', '')) in ('BoxInstMaskHead', 'DropBlock') and 'warmup_iters' not in settings:
        found[('warmup_iters',)] = _BEGINNINGS['warmup_iters']  # 10 000 and 2 000, by themselves
    return found


def _with_hooks(cfg: Mapping[str, Any], changes: dict[str, Any], names: list[str]) -> dict[str, Any]:
    # A list replaces the inherited one, so the base's hooks are named again.
    hooks = list(changes.get('custom_hooks', cfg.get('custom_hooks') or []))
    known = [type_name(hook.get('type', '')) for hook in hooks if isinstance(hook, Mapping)]
    new = [{'type': name} for name in names if name not in known]
    return {**changes, 'custom_hooks': [*hooks, *new]} if new else changes


def _component(cfg: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    node: Any = cfg.get('model')
    if not isinstance(node, Mapping):
        raise ConfigError("the config has no 'model': give the config that the baseline was trained with")
    for key in part.split('.'):
        parts = {name: value for name, value in node.items() if isinstance(value, Mapping) and 'type' in value}
        if key not in parts:
            found = f'{", ".join(parts)}; name one of them' if parts else 'none that has a type; is the config whole?'
            if isinstance(node.get(key), (list, tuple)):
                found = f"a list of them: give each type='{BUILDER}' and its own type as base_type, in the config"
            raise ConfigError(f'the model has no part {part!r} (looked for {key!r}): it has {found}')
        node = parts[key]
    if type_name(node['type']) == BUILDER:
        raise ConfigError(
            f'model.{part} is upgraded already (base_type={node.get("base_type")!r}, '
            f'targets={node.get("targets")!r}): start from the config of the baseline, or change targets '
            'there'
        )
    return node


def _scoped_type(cfg: Mapping[str, Any], part: str) -> Any:
    """The type of a component, with the scope that its registry would take from a model around it."""
    node: Mapping[str, Any] = cfg['model']
    scope = ''
    for key in part.split('.'):
        name = node.get('type')
        scope = name.partition('.')[0] if isinstance(name, str) and name.count('.') == 1 else scope
        node = node[key]
    kind = node['type']
    bare = isinstance(kind, str) and '.' not in kind
    return f'{scope}.{kind}' if bare and scope and not cfg.get('default_scope') else kind


def _imports(cfg: Mapping[str, Any]) -> dict[str, Any]:
    imports = cfg.get('custom_imports') or {}
    names: Any = imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if 'mmdeform_upgrade' not in names:
        names.insert(0, 'mmdeform_upgrade')  # before what imports mmdet.models, which need mmcv's operators
    return {**imports, 'imports': names, 'allow_failed_imports': imports.get('allow_failed_imports', False)}


def _drop_downloads(settings: Mapping[str, Any], changes: dict[str, Any]) -> None:
    """Have a model's parts ask for no pretrained weights: the baseline brings all of them."""
    for key, value in settings.items():
        if key == 'pretrained' and value:
            changes[key] = False if value is True else None
        elif key == 'init_cfg' and is_download(value):
            changes[key] = None
        elif isinstance(value, Mapping):
            _drop_downloads(value, inner := changes.get(key, {}))
            changes.update({key: inner} if inner else {})


def is_download(init_cfg: Any) -> bool:
    """Whether an initialisation, or any of several, reads weights from a file or an address."""
    if isinstance(init_cfg, (list, tuple)):
        return any(map(is_download, init_cfg))
    return isinstance(init_cfg, Mapping) and bool(
        type_name(init_cfg.get('type', '')) == 'Pretrained'
        or init_cfg.get('checkpoint')  # PVT's has no type
        or is_download(init_cfg.get('override'))
    )


def _plain(targets: Targets) -> Any:
    if isinstance(targets, Mapping):
        return dict(targets)
    return targets if isinstance(targets, str) else list(targets)
