# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The learning rates that a training will have, read from the optimizer that its config builds."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS
from torch import nn

from ..config.lengths import Length
from ..config.rates import check_offset_rates, idle_rules
from ..config.schedule import schedule_changes
from ..config.schedulers import converted
from ..config.settings import last_iteration, listed_schedulers, scheduled_iterations, type_name
from ..errors import ConfigError, UpgradeError, listed
from ..offsets import OffsetOptimizer, split_offsets

_OF_THE_OPTIMIZER = ('constructor', 'base_constructor', 'optimizer', 'offset_optimizer', 'paramwise_cfg')
_MANY = 1000  # iterations that are looked at, of a longer schedule in proportion
_EPOCH = 20  # iterations of an epoch whose real number is not known; the shape is the same
_WARM_UP = 5  # of them at most


def describe_rates(network: nn.Module, cfg: Mapping[str, Any]) -> str:
    """Peak and last rate of the weights and of the offsets of a training, for a person to check.

    Raises:
        ConfigError: optimizer or schedulers cannot be built, or a rate for offsets would not reach them.
    """
    wrapper = build_optimizer(network, cfg)
    offsets = {id(parameter) for parameter in split_offsets(network)[1]}
    groups: dict[Any, dict[str, Any]] = {}  # distinct ones
    for group in wrapper.optimizer.param_groups:
        kinds = {id(parameter) in offsets for parameter in group['params']}
        groups.setdefault((str(group.get('lr')), *sorted(kinds)), group)
    wrapper.optimizer.param_groups = list(groups.values())
    with building('schedule'):
        history = list(_history(wrapper, cfg))
    name = type(getattr(wrapper.optimizer, 'base', wrapper.optimizer)).__name__
    own = type(wrapper.optimizer.offsets).__name__ if isinstance(wrapper.optimizer, OffsetOptimizer) else name
    hook = type_name(((cfg.get('default_hooks') or {}).get('param_scheduler') or {}).get('type', 'ParamSchedulerHook'))
    # mmyolo schedules rates in a hook, which is not looked at here.
    note = '' if hook == 'ParamSchedulerHook' else f'; {hook} changes these rates during training'
    if (scaling := cfg.get('auto_scale_lr') or {}).get('enable'):
        note += f'; auto_scale_lr multiplies these by the pictures of a step / {scaling.get("base_batch_size")}'
    if idle := idle_rules(cfg.get('optim_wrapper') or {}):
        note += f'; paramwise_cfg.{listed(idle)} does not change the rate of the offsets, offset_optimizer.lr does'
    columns = {kind: [i for i, key in enumerate(groups) if kind in key[1:]] for kind in (False, True)}
    return f'{name} {_span(history, columns[False])}; offsets: {own} {_span(history, columns[True])}{note}'


def build_optimizer(network: nn.Module, cfg: Mapping[str, Any]) -> OptimWrapper:
    """The optimizer of a config, in a plain wrapper.

    Raises:
        ConfigError: it cannot be built, or a rate for offsets would not reach them.
    """
    check_offset_rates(cfg)
    settings = cfg.get('optim_wrapper') or {}
    if 'optimizer' not in settings:
        raise ConfigError('the config has no optim_wrapper.optimizer: name the one that trains')
    kind = settings['optimizer'].get('type')
    if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
        raise ConfigError(f'optim_wrapper.optimizer.type={kind!r} is no registered optimizer')
    with building('optimizer'):
        given = {key: settings[key] for key in _OF_THE_OPTIMIZER if key in settings}
        return build_optim_wrapper(network, copy.deepcopy({'type': 'OptimWrapper', **given}))


def _history(wrapper: OptimWrapper, cfg: Mapping[str, Any]) -> Iterator[list[float]]:
    length = Length.of(cfg)
    if length.unit == 'iters' and length.total > _MANY:
        cfg = schedule_changes(
            {key: cfg[key] for key in ('train_cfg', 'param_scheduler') if key in cfg}, max_iters=_MANY
        )
        length = Length.of(cfg)
    steps = length.total * (_EPOCH if length.unit == 'epochs' else 1)
    given = listed_schedulers(cfg.get('param_scheduler'))
    if length.unit == 'epochs':
        given = _in_proportion(given, steps)
    of_epochs = length.total if length.unit == 'epochs' else math.inf
    made = dict(optimizer=wrapper, epoch_length=_EPOCH)
    ends = ({'end': of_epochs if settings.get('by_epoch', True) else steps, **settings} for settings in given)
    schedulers = [PARAM_SCHEDULERS.build(settings, default_args=made) for settings in ends]
    schedulers = [scheduler for scheduler in schedulers if not getattr(scheduler, 'need_val_args', False)]
    for step in range(1, steps + 1):
        yield [float(group['lr'] or 0) for group in wrapper.optimizer.param_groups]
        for scheduler in schedulers:
            if not scheduler.by_epoch or (length.unit == 'epochs' and step % _EPOCH == 0):
                scheduler.step()


def _in_proportion(given: list[Mapping[str, Any]], steps: int) -> list[Mapping[str, Any]]:
    """Schedulers that count iterations of a training of epochs: warm-ups early in its first epoch, or all of its schedule."""
    whole = scheduled_iterations(given)
    factor = steps / whole if whole else _WARM_UP / max(_WARM_UP, last_iteration(given))
    return [
        settings
        if settings.get('by_epoch', True)
        else converted(dict(settings), lambda mark: mark and max(1, round(mark * factor)))
        for settings in given
    ]


def _span(history: list[list[float]], columns: list[int]) -> str:
    if not columns:
        return 'trains nothing'
    peaks, last = [max(rates[i] for rates in history) for i in columns], [history[-1][i] for i in columns]
    return f'lr {_range(peaks)}, at the end {_range(last)}'


def _range(rates: list[float]) -> str:
    low, high = f'{min(rates):.3g}', f'{max(rates):.3g}'
    return low if low == high else f'{low} to {high}'


@contextlib.contextmanager
def building(what: str) -> Iterator[None]:
    """Build a part of a config quietly; a failure becomes the package's own error."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except UpgradeError:
        raise
    except Exception as error:  # of any framework's part
        raise ConfigError(f'the {what} of the config cannot be built: {type(error).__name__}: {error}') from error
    finally:
        logger.setLevel(level)
