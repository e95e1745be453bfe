# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A config's schedule, shortened: pure functions from config to config.

The paper (section 4) fine-tunes for a quarter of the baseline's epochs and multiplies the learning rate by 0.1 at 2/3
and at 5/6 of them: 240 -> 60 epochs with decays at 40 and 50. Schedules of another kind keep their shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..ops.geometry import is_whole
from .lengths import Length, Scale
from .schedulers import STEP_COUNTS, STEP_LISTS, shorten_schedulers
from .settings import changed, listed_schedulers, scheduled_iterations, settings_of, type_name

if TYPE_CHECKING:
    from mmengine.config import Config


def shorten_schedule(cfg: Config, epoch_ratio: float = 0.25, max_iters: int | None = None) -> Config:
    """A copy of ``cfg`` that trains ``epoch_ratio`` of its epochs or iterations, or ``max_iters`` steps.

    Step schedules (``MultiStepLR``, ``StepLR``) decay by 0.1 at 2/3 and 5/6 of the new length: after whole epochs, or
    within one where fewer than five epochs leave no two whole ones. All other schedulers, warm-up included, keep their
    shape in proportion. Validation and checkpoint intervals and hooks that switch at an epoch are scaled alike. With
    ``max_iters``, a baseline that counts epochs becomes one that counts iterations, with twelve validations at most.

    Args:
        cfg: any MMEngine config with a ``train_cfg``; it is not changed.
        epoch_ratio: new length over old, in (0, 1].
        max_iters: new length in steps; ``epoch_ratio`` then has no meaning.

    Raises:
        ConfigError: the length is out of range, the config has none to shorten, or it counts epochs in a way that has
            no equivalent in iterations.
    """
    return changed(cfg, schedule_changes(cfg, epoch_ratio, max_iters))


def schedule_changes(cfg: Mapping[str, Any], epoch_ratio: float = 0.25, max_iters: int | None = None) -> dict[str, Any]:
    """What :func:`shorten_schedule` changes, as a dict that merges into ``cfg``."""
    cfg = settings_of(cfg)
    before = Length.of(cfg)
    if not (max_iters is None or is_whole(max_iters, 1)):
        raise ConfigError(f'max_iters={max_iters!r}: expected a whole number of steps, at least 1')
    after = before.scaled(epoch_ratio) if max_iters is None else Length(max_iters, 'iters')
    scale = Scale(before, after, scheduled_iterations(listed_schedulers(cfg.get('param_scheduler'))))
    changes: dict[str, Any] = {'train_cfg': scale.loop(cfg['train_cfg'])}
    interval = cfg['train_cfg'].get('val_interval', 1)
    validations = scale.ratio * interval / changes['train_cfg'].get('val_interval', interval)  # new ones for an old one
    if cfg.get('param_scheduler'):
        changes['param_scheduler'] = shorten_schedulers(cfg['param_scheduler'], scale, validations)
    hooks = {name: new for name, hook in (cfg.get('default_hooks') or {}).items() if (new := scale.hook(hook))}
    custom = cfg.get('custom_hooks') or []
    if any(map(scale.hook, custom)):
        changes['custom_hooks'] = [{**hook, **new} if (new := scale.hook(hook)) else hook for hook in custom]
    if scale.to_iters:
        own = cfg.get('default_hooks') or {}
        usual: dict[str, dict[str, Any]] = {
            'logger': {'type': 'LoggerHook'},
            'checkpoint': {'type': 'CheckpointHook', 'interval': scale.interval(1)},
        }
        for name, key in (('logger', 'log_metric_by_epoch'), ('checkpoint', 'by_epoch')):
            if name not in own:  # MMEngine's own counts epochs
                hooks[name] = {**usual[name], key: False}
            elif own[name]:
                hooks[name] = {**hooks.get(name, {}), key: False}
        changes['log_processor'] = {'by_epoch': False}
        sampler = (cfg.get('train_dataloader') or {}).get('sampler') or {}
        if type_name(sampler.get('type', '')) == 'DefaultSampler':
            infinite = {'_delete_': True, 'type': 'InfiniteSampler', 'shuffle': sampler.get('shuffle', True)}
            changes['train_dataloader'] = {'sampler': infinite}
    return {**changes, 'default_hooks': hooks} if hooks else changes


def describe_schedule(cfg: Mapping[str, Any]) -> str:
    """One line a person can check: length, schedulers and their boundaries."""
    length = Length.of(cfg)
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    words = {'epochs': 'epochs', 'iters': 'iterations'}
    parts = [f'{length.total} {words[length.unit]}']
    if 'lr' in optimizer:
        parts.append(f'{type_name(optimizer.get("type", "optimizer"))} lr {optimizer["lr"]}')
    for scheduler in listed_schedulers(cfg.get('param_scheduler')):
        unit = words['epochs' if scheduler.get('by_epoch', True) else 'iters']
        shown = (*STEP_LISTS, *STEP_COUNTS, 'gamma', 'power', 'eta_min', 'eta_max', 'begin', 'end')
        numbers = [f'{key} {scheduler[key]}' for key in shown if scheduler.get(key) is not None]
        if scheduler.get('milestones') == [0]:  # of _decay_within_an_epoch
            numbers = [f'once, at {scheduler.get("begin")}', f'gamma {scheduler["gamma"]}']
        parts.append(f'{type_name(scheduler["type"])} ({unit}: {", ".join(numbers)})')
    if interval := (cfg.get('train_cfg') or {}).get('val_interval'):
        parts.append(f'validation every {interval}')
    return '; '.join(parts)
