# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Lengths of a training, and from one to another: loop, hooks and intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .settings import is_count, is_number, type_name

VALIDATIONS = 12  # and checkpoints, at most, of a training of so many steps: one of hundreds of epochs has as many
WARM_UP = 1 / 10  # of a training of so many steps, the most that a warm-up counted in steps takes

_OF_RATES = ('max_epochs', 'total_epochs', 'warmup_epochs', 'warmup_mim_iter', 'warmup_min_iter')  # mmyolo's hooks
# Arguments of hooks and schedulers that count epochs or iterations of the training.
_HOOK_KEYS = {
    'epochs': ('switch_epoch', 'num_last_epochs', 'begin_epoch', 'stop_epoch', *_OF_RATES),
    'iters': ('switch_iter', 'begin_iter', 'stop_iter'),
}
_BEGINS = ('switch_epoch', 'switch_iter', 'begin_epoch', 'begin_iter')  # what lasts until the end


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
        return Length(max(1, round_half_up(self.total * ratio)), self.unit)

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
        return max(1, round_half_up(steps * self.ratio)) if steps > 0 else int(steps)

    def interval(self, steps: float) -> int:
        """Steps from one validation or checkpoint to the next."""
        if not self.to_iters or steps <= 0:
            return self(steps)
        return max(self(steps), math.ceil(self.after.total / VALIDATIONS))

    def in_iterations(self, scheduler: Mapping[str, Any]) -> bool:
        """Whether a scheduler counted iterations in a training of epochs that becomes one of iterations."""
        return self.to_iters and not self.before.counts(scheduler)

    def of(self, scheduler: Mapping[str, Any]) -> Callable[[float], int]:
        """What converts the numbers of a scheduler."""
        return self.of_iterations if self.in_iterations(scheduler) else self

    def of_iterations(self, steps: float) -> int:
        """A number of iterations in a training that counted epochs."""
        if self.iterations:
            return max(1, round_half_up(steps * self.after.total / self.iterations)) if steps > 0 else 0
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
            changes[key] = new
        for key in _HOOK_KEYS['iters'] if self.before.unit == 'epochs' else ():
            if is_count(hook.get(key)):
                new = min(self.of_iterations(hook[key]), self.after.total - 1) if self.to_iters else self(hook[key])
                changes[key] = new
        changes = {key: new for key, new in changes.items() if new != hook[key]}
        if self.to_iters and kind == 'CheckpointHook' and self.before.counts(hook):
            changes['by_epoch'] = False
        return changes


def round_half_up(number: float) -> int:
    """The nearest whole number; ``round`` takes halves to even ones."""
    return math.floor(number + 0.5)
