# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What a training config has to look like before it is changed: every setting that is no use, in one error."""

from __future__ import annotations

import math
from typing import Any, Iterator, List, Mapping, Sequence, Tuple

from .errors import ConfigError

_COUNTS = ('begin', 'end', 'T_max', 'total_steps', 'step_size')
_LISTS = ('milestones', 'periods')


def check_training_config(cfg: Any) -> None:
    """Look at the parts of a config that a shortened or upgraded one is made of.

    Raises:
        ConfigError: names each setting of another kind than MMEngine takes.
    """
    if not hasattr(cfg, 'get') or isinstance(cfg, type):
        raise ConfigError(f'the config is a {type(cfg).__name__}, expected a Config: read it with Config.fromfile')
    problems = [*_sections(cfg)] or [
        *_intervals(cfg.get('train_cfg') or {}),
        *_schedulers('param_scheduler', cfg.get('param_scheduler')),
    ]
    if problems:
        raise ConfigError('the config cannot be changed: ' + '; '.join(problems))


def is_number(value: Any) -> bool:
    """Whether a setting counts something: a whole number, or a float (``end`` may be infinite), but no NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _sections(cfg: Any) -> Iterator[str]:
    for key in ('train_cfg', 'default_hooks', 'custom_imports', 'optim_wrapper'):
        value = cfg.get(key)
        if value is not None and not isinstance(value, Mapping):
            yield f'{key} is a {type(value).__name__}, expected a dict'
    hooks = cfg.get('custom_hooks')
    if hooks is not None and not isinstance(hooks, (list, tuple)):
        yield f'custom_hooks is a {type(hooks).__name__}, expected a list'


def _intervals(train_cfg: Mapping[str, Any]) -> Iterator[str]:
    pairs = train_cfg.get('dynamic_intervals')
    if pairs is not None and not (isinstance(pairs, (list, tuple)) and all(map(_is_pair, pairs))):
        yield f'train_cfg.dynamic_intervals={pairs!r}, expected pairs (start, interval)'


def _is_pair(pair: Any) -> bool:
    return _is_list(pair) and len(pair) == 2


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _counts(key: str, scheduler: Mapping[str, Any]) -> bool:
    value = scheduler[key]
    if key == 'begin' and scheduler.get('convert_to_iter_based'):  # may lie within an epoch
        return is_number(value) and math.isfinite(value)
    return is_number(value) if key == 'end' else _is_whole(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(_is_whole(number) for number in value)


def _schedulers(where: str, schedulers: Any) -> Iterator[str]:
    if schedulers is None:
        return
    if isinstance(schedulers, Mapping) and 'type' not in schedulers:  # one list for each of several optimizers
        parts: Sequence[Tuple[str, Any]] = [(f'{where}.{name}', part) for name, part in schedulers.items()]
    elif isinstance(schedulers, (list, tuple)):
        parts = [(f'{where}[{index}]', part) for index, part in enumerate(schedulers)]
    else:
        yield from _scheduler(where, schedulers)
        return
    for name, part in parts:
        yield from _schedulers(name, part) if isinstance(schedulers, Mapping) else _scheduler(name, part)


def _scheduler(where: str, scheduler: Any) -> List[str]:
    if not isinstance(scheduler, Mapping):
        return [f'{where} is a {type(scheduler).__name__}, expected a dict with a type']
    kind = scheduler.get('type')
    wrong = [f'{where} has no type'] if kind is None or (isinstance(kind, str) and not kind) else []
    if not (kind is None or isinstance(kind, str) or callable(kind)):
        wrong.append(f'{where}.type={kind!r}, expected a name or a class')
    # A key with None is as good as none; the scheduler's own default stands then.
    given = {key: value for key, value in scheduler.items() if value is not None}
    wrong += [
        f'{where}.{key}={given[key]!r}, expected a number of epochs or iterations'
        for key in _COUNTS
        if key in given and not _counts(key, given)
    ]
    wrong += [
        f'{where}.{key}={given[key]!r}, expected a list of whole numbers'
        for key in _LISTS
        if key in given and not _is_list(given[key])
    ]
    if 'gamma' in given and not (is_number(given['gamma']) and given['gamma'] >= 0):
        wrong.append(f'{where}.gamma={given["gamma"]!r}, expected a number of at least 0')
    return wrong
