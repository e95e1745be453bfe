# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What becomes of each learning-rate scheduler when a training gets another length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .lengths import Scale, round_half_up
from .settings import is_count, listed_schedulers, type_name

DECAY_AT = (2 / 3, 5 / 6)
DECAY_FACTOR = 0.1

STEP_COUNTS = ('T_max', 'total_steps', 'step_size', 'patience', 'cooldown')
STEP_LISTS = ('milestones', 'periods')


def shorten_schedulers(schedulers: Any, scale: Scale, validations: float) -> Any:
    """A ``param_scheduler`` for the new length; ``validations``: of the new training, for one of the old."""
    if isinstance(schedulers, Mapping) and 'type' not in schedulers:  # one list for each of several optimizers
        return {name: shorten_schedulers(part, scale, validations) for name, part in schedulers.items()}
    shortened: list[dict[str, Any]] = []
    decays = False
    for scheduler in map(dict, listed_schedulers(schedulers)):
        kind = type_name(scheduler['type'])
        if kind in ('MultiStepLR', 'StepLR') and (scale.before.counts(scheduler) or scale.to_iters):
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
    return {**scheduler, **{key: wait and max(1, round_half_up(wait * validations)) for key, wait in waits.items()}}


def _scaled(scheduler: dict[str, Any], scale: Scale) -> dict[str, Any] | None:
    begin, end = scheduler.get('begin') or 0, scheduler.get('end', math.inf)
    full_cycle = scheduler.get('T_max') == end - begin
    scheduler = converted(scheduler, scale.of(scheduler))
    # MMEngine's schedulers change the rate between their first and last step. One of a single step never gets that
    # far: a warm-up would leave the rate at its start factor for the whole training.
    least = 1 if scheduler.get('convert_to_iter_based') else 2
    if is_count(end) and scheduler['end'] - (scheduler.get('begin') or 0) < min(end - begin, least):
        return None
    if full_cycle:
        scheduler['T_max'] = scheduler['end'] - (scheduler.get('begin') or 0)
    if type_name(scheduler['type']).startswith('Exponential') and scheduler.get('gamma') is not None:
        scheduler['gamma'] = scheduler['gamma'] ** (1 / _ratio(scale, scheduler))
    return _by_iteration(scheduler) if scale.to_iters else scheduler


def _ratio(scale: Scale, scheduler: Mapping[str, Any]) -> float:
    if not scale.in_iterations(scheduler):
        return scale.ratio
    if not scale.iterations:
        raise ConfigError(
            'max_iters: an exponential scheduler counts iterations, and none of the param_scheduler says how many the '
            'training has: give epoch_ratio instead, or its end'
        )
    return scale.after.total / scale.iterations


def converted(scheduler: dict[str, Any], convert: Any) -> dict[str, Any]:
    """A scheduler's settings, in which every number of epochs or iterations is replaced by ``convert`` of it."""
    for key in ('begin', 'end', *STEP_COUNTS):
        if is_count(scheduler.get(key)):
            scheduler[key] = convert(scheduler[key])
    for key in STEP_LISTS:
        if scheduler.get(key) is not None:
            scheduler[key] = [convert(step) for step in scheduler[key]]
    return scheduler


def _by_iteration(scheduler: dict[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in scheduler.items() if k != 'convert_to_iter_based'}, 'by_epoch': False}


def _paper_steps(scheduler: dict[str, Any], scale: Scale) -> list[dict[str, Any]]:
    total = scale.after.total
    steps = sorted({round_half_up(total * part) for part in DECAY_AT})
    kept = {key: value for key, value in scheduler.items() if key not in ('milestones', 'step_size')}
    scheduler = {**converted(kept, scale.of(scheduler)), 'gamma': DECAY_FACTOR}
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
