# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A config's schedule, shortened: pure functions from config to config.

The paper (section 4) fine-tunes for a quarter of the baseline's epochs and multiplies the learning rate by 0.1 at 2/3
and at 5/6 of them: 240 -> 60 epochs with decays at 40 and 50. Schedules of another kind keep their shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..ops.geometry import is_whole
from .settings import changed, is_count, is_number, listed_schedulers, scheduled_iterations, settings_of, type_name

if TYPE_CHECKING:
    from mmengine.config import Config

DECAY_AT = (2 / 3, 5 / 6)
DECAY_FACTOR = 0.1
VALIDATIONS = 12  # and checkpoints, at most, of a training of so many steps: one of hundreds of epochs has as many
WARM_UP = 1 / 10  # of a training of so many steps, the most that a warm-up counted in steps takes

_OF_RATES = ('max_epochs', 'total_epochs', 'warmup_epochs', 'warmup_mim_iter', 'warmup_min_iter')  # mmyolo's hooks
# Arguments of hooks and schedulers that count epochs or iterations of the training.
_HOOK_KEYS = {
    'epochs': ('switch_epoch', 'num_last_epochs', 'begin_epoch', 'stop_epoch', *_OF_RATES),
    'iters': ('switch_iter', 'begin_iter', 'stop_iter'),
}
_BEGINS = ('switch_epoch', 'switch_iter', 'begin_epoch', 'begin_iter')  # what lasts until the end
_STEP_COUNTS = ('T_max', 'total_steps', 'step_size', 'patience', 'cooldown')
_STEP_LISTS = ('milestones', 'periods')


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
        changes['param_scheduler'] = _schedulers(cfg['param_scheduler'], scale, validations)
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
        shown = (*_STEP_LISTS, *_STEP_COUNTS, 'gamma', 'power', 'eta_min', 'eta_max', 'begin', 'end')
        numbers = [f'{key} {scheduler[key]}' for key in shown if scheduler.get(key) is not None]
        if scheduler.get('milestones') == [0]:  # of _decay_within_an_epoch
            numbers = [f'once, at {scheduler.get("begin")}', f'gamma {scheduler["gamma"]}']
        parts.append(f'{type_name(scheduler["type"])} ({unit}: {", ".join(numbers)})')
    if interval := (cfg.get('train_cfg') or {}).get('val_interval'):
        parts.append(f'validation every {interval}')
    return '; '.join(parts)


@dataclass(frozen=True)
class Length:
    """How long a config trains: ``total`` in ``unit`` ('epochs' or 'iters')."""

    total: int
    unit: str

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> Length:
        """The length of a config's training."""
        for unit in ('epochs', 'iters'):
            total: Any = (cfg.get('train_cfg') or {}).get(f'max_{unit}')
            if is_count(total) and total > 0:
                return cls(int(total), unit)
        raise ConfigError(
            'the config has neither train_cfg.max_epochs nor train_cfg.max_iters: there is no schedule to shorten; give '
            'the config that the baseline was trained with'
        )

    def scaled(self, ratio: float) -> Length:
        """So much of it."""
        if not (is_number(ratio) and 0 < ratio <= 1):
            raise ConfigError(f'epoch_ratio={ratio!r} is not in (0, 1]: it is the new length over the old')
        return Length(max(1, _round(self.total * ratio)), self.unit)

    def counts(self, scheduler: Mapping[str, Any]) -> bool:
        """Whether a scheduler counts in the unit of the training loop."""
        return bool(scheduler.get('by_epoch', True)) == (self.unit == 'epochs')


@dataclass(frozen=True)
class Scale:
    """From one length to another; calling it converts a number of steps in the old unit.

    ``iterations``: those of a training of epochs, see :func:`scheduled_iterations`.
    """

    before: Length
    after: Length
    iterations: int

    @property
    def ratio(self) -> float:
        return self.after.total / self.before.total

    @property
    def to_iters(self) -> bool:
        """Whether epochs become iterations."""
        return self.before.unit != self.after.unit

    def __call__(self, steps: float) -> int:
        return max(1, _round(steps * self.ratio)) if steps > 0 else int(steps)

    def interval(self, steps: float) -> int:
        """Steps from one validation or checkpoint to the next."""
        if not self.to_iters or steps <= 0:
            return self(steps)
        return max(self(steps), math.ceil(self.after.total / VALIDATIONS))

    def of_iterations(self, steps: float) -> int:
        """A number of iterations in a training that counted epochs."""
        if self.iterations:
            return max(1, _round(steps * self.after.total / self.iterations)) if steps > 0 else 0
        return min(int(steps), max(1, int(self.after.total * WARM_UP)))

    def loop(self, train_cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Changes of a ``train_cfg``."""
        changes: dict[str, Any] = {f'max_{self.after.unit}': self.after.total}
        interval = train_cfg.get('val_interval', 1 if self.to_iters else None)
        if is_count(interval):
            changes['val_interval'] = self.interval(interval)
        if is_count(train_cfg.get('val_begin')):
            changes['val_begin'] = self(train_cfg['val_begin'])
        if dynamic := train_cfg.get('dynamic_intervals'):
            changes['dynamic_intervals'] = [(self(start), self.interval(step)) for start, step in dynamic]
        if not self.to_iters:
            return changes
        if (kind := type_name(train_cfg.get('type', 'EpochBasedTrainLoop'))) != 'EpochBasedTrainLoop':
            raise ConfigError(f'max_iters: the training loop {kind} counts epochs: give epoch_ratio instead')
        return {'_delete_': True, 'type': 'IterBasedTrainLoop', **changes}

    def hook(self, hook: Any) -> dict[str, Any]:
        """Changes of a hook."""
        if not isinstance(hook, Mapping):
            return {}
        kind = type_name(hook.get('type', ''))
        counted = [key for key in _HOOK_KEYS[self.before.unit] if is_count(hook.get(key))]
        if kind in ('CheckpointHook', 'EvalHook') and self.before.counts(hook):
            counted += [key for key in ('interval', 'save_begin') if is_count(hook.get(key))]
        if self.to_iters and (lost := [key for key in counted if key in _HOOK_KEYS['epochs'] and hook[key] > 0]):
            raise ConfigError(
                f'max_iters: {kind} counts epochs ({lost[0]}={hook[lost[0]]}), of which a training of so many steps '
                'has none: give epoch_ratio instead, or take it out of the hooks of the baseline'
            )
        changes: dict[str, Any] = {}
        for key in counted:
            new = self.interval(hook[key]) if key == 'interval' else self(hook[key])
            if key in _BEGINS and hook[key] < self.before.total:  # a last part that is rounded to nothing never begins
                new = min(new, self.after.total - 1)
            if new != hook[key]:
                changes[key] = new
        if self.to_iters and kind == 'CheckpointHook' and self.before.counts(hook):
            changes['by_epoch'] = False
        return changes


def _round(number: float) -> int:
    return math.floor(number + 0.5)  # halves up; round() takes them to even


def _schedulers(schedulers: Any, scale: Scale, validations: float) -> Any:
    if isinstance(schedulers, Mapping) and 'type' not in schedulers:  # one list for each of several optimizers
        return {name: _schedulers(part, scale, validations) for name, part in schedulers.items()}
    shortened: list[dict[str, Any]] = []
    decays = False
    for scheduler in map(dict, listed_schedulers(schedulers)):
        kind = type_name(scheduler['type'])
        if kind in ('MultiStepLR', 'StepLR') and scale.before.counts(scheduler):
            shortened += [] if decays else _paper_steps(scheduler, scale)
            decays = True  # of the whole schedule, also where its steps are in several schedulers
        elif kind.startswith('ReduceOnPlateau'):
            shortened.append(_plateau(scheduler, scale, validations))
        elif scaled := _scaled(scheduler, scale):
            shortened.append(scaled)
    return shortened


def _plateau(scheduler: dict[str, Any], scale: Scale, validations: float) -> dict[str, Any]:
    """``patience`` and ``cooldown`` count validations, ``begin`` and ``end`` the training's epochs or iterations."""
    waits = {key: scheduler[key] for key in ('patience', 'cooldown') if is_count(scheduler.get(key))}
    scheduler = {key: value for key, value in scheduler.items() if key not in waits}
    if scale.before.counts(scheduler):
        if scale.to_iters and scheduler.get('begin'):
            raise ConfigError(
                f'max_iters: {type_name(scheduler["type"])} begins after {scheduler["begin"]} epochs, of which a training of '
                'so many steps has none: give epoch_ratio instead, or take begin out of the param_scheduler of the baseline'
            )
        scheduler = converted(scheduler, scale)
    return {**scheduler, **{key: wait and max(1, _round(wait * validations)) for key, wait in waits.items()}}


def _scaled(scheduler: dict[str, Any], scale: Scale) -> dict[str, Any] | None:
    begin, end = scheduler.get('begin') or 0, scheduler.get('end', math.inf)
    full_cycle = scheduler.get('T_max') == end - begin
    in_iterations = scale.to_iters and not scale.before.counts(scheduler)
    scheduler = converted(scheduler, scale.of_iterations if in_iterations else scale)
    # MMEngine's schedulers change the rate between their first and last step. One of a single step never gets that
    # far: a warm-up would leave the rate at its start factor for the whole training.
    least = 1 if scheduler.get('convert_to_iter_based') else 2
    if is_count(end) and scheduler['end'] - (scheduler.get('begin') or 0) < min(end - begin, least):
        return None
    if full_cycle:
        scheduler['T_max'] = scheduler['end'] - (scheduler.get('begin') or 0)
    if type_name(scheduler['type']).startswith('Exponential') and scheduler.get('gamma') is not None:
        scheduler['gamma'] = scheduler['gamma'] ** (1 / scale.ratio)
    return _by_iteration(scheduler) if scale.to_iters else scheduler


def converted(scheduler: dict[str, Any], convert: Any) -> dict[str, Any]:
    """A scheduler's settings, in which every number of epochs or iterations is replaced by ``convert`` of it."""
    for key in ('begin', 'end', *_STEP_COUNTS):
        if is_count(scheduler.get(key)):
            scheduler[key] = convert(scheduler[key])
    for key in _STEP_LISTS:
        if scheduler.get(key) is not None:
            scheduler[key] = [convert(step) for step in scheduler[key]]
    return scheduler


def _by_iteration(scheduler: dict[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in scheduler.items() if k != 'convert_to_iter_based'}, 'by_epoch': False}


def _paper_steps(scheduler: dict[str, Any], scale: Scale) -> list[dict[str, Any]]:
    total = scale.after.total
    steps = sorted({_round(total * part) for part in DECAY_AT})
    kept = {key: value for key, value in scheduler.items() if key not in ('milestones', 'step_size')}
    scheduler = {**converted(kept, scale), 'gamma': DECAY_FACTOR}
    if is_count(scheduler.get('end')):  # who doubles the epochs often leaves the end, behind which no rate changes
        scheduler['end'] = max(scheduler['end'], total)
    if type_name(scheduler['type']) == 'StepLR':
        scheduler['type'] = 'MultiStepLR'
    if scale.to_iters:
        scheduler = _by_iteration(scheduler)
    elif scale.after.unit == 'epochs' and (len(steps) < len(DECAY_AT) or steps[-1] == total):
        return [_decay_within_an_epoch(scheduler, total * part) for part in DECAY_AT]
    # Milestones count from the scheduler's own begin, which in a schedule of _decay_within_an_epoch is a decay.
    begin = scheduler.get('begin') or 0
    if begin >= steps[0]:
        begin = scheduler['begin'] = 0
    return [{**scheduler, 'milestones': [step - begin for step in steps if begin < step < total]}]


def _decay_within_an_epoch(scheduler: Mapping[str, Any], epoch: float) -> dict[str, Any]:
    # MMEngine multiplies milestones by the epoch's iterations and waits for exactly that number, which a fraction may
    # never meet; begin it makes whole. So each decay is the first step of a scheduler that begins there.
    kept = {key: value for key, value in scheduler.items() if key not in ('begin', 'convert_to_iter_based')}
    return {**kept, 'begin': math.ceil(epoch * 1e4) / 1e4, 'milestones': [0], 'convert_to_iter_based': True}
