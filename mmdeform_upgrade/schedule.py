# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A config's schedule, shortened: pure functions from config to config.

The paper (section 4) fine-tunes for a quarter of the baseline's epochs and multiplies the learning rate by 0.1 at 2/3
and at 5/6 of them: 240 -> 60 epochs with decays at 40 and 50. Schedules of another kind keep their shape.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional

from .errors import ConfigError
from .optim import OFFSET_LR
from .training_config import check_training_config, is_number

if TYPE_CHECKING:
    from mmengine.config import Config

DECAY_AT = (2 / 3, 5 / 6)
DECAY_FACTOR = 0.1
OFFSETS = 'conv_offset'  # part of the names of the offset branches' parameters
OFFSET_OPTIMIZER = 'adam'  # how an upgrade trains its offsets unless something else is said
CONSTRUCTOR = 'OffsetOptimizerConstructor'

# Arguments of hooks that count epochs or iterations of the training.
_HOOK_EPOCHS = ('switch_epoch', 'num_last_epochs', 'begin_epoch', 'stop_epoch')
_HOOK_ITERS = ('switch_iter', 'begin_iter', 'stop_iter')
# Arguments of schedulers, besides begin and end, that count steps.
_STEP_COUNTS = ('T_max', 'total_steps', 'step_size')
_STEP_LISTS = ('milestones', 'periods')


def shorten_schedule(cfg: Config, epoch_ratio: float = 0.25) -> Config:
    """A copy of ``cfg`` that trains ``epoch_ratio`` of its epochs or iterations.

    Step schedules (``MultiStepLR``, ``StepLR``) decay by 0.1 at 2/3 and 5/6 of the new length: after whole epochs, or
    within one where fewer than five epochs leave no two whole ones. All other schedulers, warm-up included, keep their
    shape in proportion. Validation and checkpoint intervals and hooks that switch at an epoch are scaled alike.

    Args:
        cfg: any MMEngine config with a ``train_cfg``; it is not changed.
        epoch_ratio: new length over old, in (0, 1].

    Raises:
        ConfigError: ``epoch_ratio`` is out of range or the config has no length to shorten.
    """
    changes = schedule_changes(cfg, epoch_ratio)
    short = copy.deepcopy(cfg)
    short.merge_from_dict(changes)
    return short


def schedule_changes(cfg: Mapping[str, Any], epoch_ratio: float) -> Dict[str, Any]:
    """What :func:`shorten_schedule` changes, as a dict that merges into ``cfg``."""
    check_training_config(cfg)
    length = Length.of(cfg)
    scale = _Scale.of(length, epoch_ratio)
    changes: Dict[str, Any] = {'train_cfg': _train_cfg(cfg['train_cfg'], length, scale)}
    if cfg.get('param_scheduler'):
        changes['param_scheduler'] = _schedulers(cfg['param_scheduler'], length, scale)
    hooks = {
        name: changed
        for name, hook in (cfg.get('default_hooks') or {}).items()
        if (changed := _hook_changes(hook, length, scale))
    }
    if hooks:
        changes['default_hooks'] = hooks
    custom = cfg.get('custom_hooks') or []
    if any(_hook_changes(hook, length, scale) for hook in custom):
        changes['custom_hooks'] = [
            {**hook, **changed} if (changed := _hook_changes(hook, length, scale)) else hook for hook in custom
        ]
    return changes


def rate_changes(
    cfg: Mapping[str, Any],
    lr_mult: float = 1.0,
    offset_lr_mult: float | None = None,
    offset_optimizer: str | None = 'same',
    offset_lr: float | None = None,
) -> dict[str, Any]:
    """Other learning rates for a fine-tune, as a dict that merges into ``cfg``; empty where nothing changes.

    Args:
        cfg: a config with an ``optim_wrapper``.
        lr_mult: rate over the config's, those that schedulers name (``eta_min``, ``eta_max``) included.
        offset_lr_mult: rate of the offset branches over the optimizer's.
        offset_optimizer: ``'adam'``: the offsets take Adam's steps of rate ``offset_lr``; ``'same'``: they are trained
            by the config's optimizer; None: ``OFFSET_OPTIMIZER``, unless the config or ``offset_lr_mult`` says how
            offsets are trained.
        offset_lr: 2e-3 unless given.

    Raises:
        ConfigError: a factor is not positive, the config has no single optimizer with a rate, or two of the settings
            contradict each other.
    """
    for name, factor in {'lr_mult': lr_mult, 'offset_lr_mult': offset_lr_mult, 'offset_lr': offset_lr}.items():
        if factor is not None and not (is_number(factor) and 0 < factor < math.inf):
            raise ConfigError(f'{name}={factor!r} is not a positive number')
    wrapper = cfg.get('optim_wrapper') or {}
    optimizer = wrapper.get('optimizer') or {}
    if (lr_mult != 1 or offset_lr_mult is not None) and 'lr' not in optimizer:
        raise ConfigError(
            'the config has no optim_wrapper.optimizer.lr to multiply: leave lr_mult and offset_lr_mult '
            'out, and set the rates of its optimizers in the new config'
        )
    changes: dict[str, Any] = {}
    if lr_mult != 1:
        changes['optimizer'] = {'lr': _times(optimizer['lr'], lr_mult)}
    changes.update(_offset_changes(wrapper, offset_lr_mult, offset_optimizer, offset_lr))
    return {'optim_wrapper': changes} if changes else {}


def _offset_changes(
    wrapper: Mapping[str, Any], lr_mult: float | None, kind: str | None, lr: float | None
) -> dict[str, Any]:
    paramwise = wrapper.get('paramwise_cfg') or {}
    rules = [key for key in ('dcn_offset_lr_mult', 'bias_lr_mult', 'bias_decay_mult') if key in paramwise]
    if kind is None:
        said = lr_mult is not None or 'dcn_offset_lr_mult' in rules or OFFSETS in (paramwise.get('custom_keys') or {})
        kind = 'same' if lr is None and (said or 'optimizer' not in wrapper) else OFFSET_OPTIMIZER
    if kind not in ('same', 'adam'):
        raise ConfigError(f"offset_optimizer={kind!r}: expected 'same' or 'adam'")
    if kind == 'adam' and lr_mult is not None:
        raise ConfigError(f'offset_lr_mult={lr_mult} multiplies the rate of the weights, which Adam does not use: '
                          "give offset_lr, or offset_optimizer='same'")  # fmt: skip
    if kind == 'same' and lr is not None:
        raise ConfigError(f"offset_lr={lr} is the rate of Adam: give offset_optimizer='adam', or offset_lr_mult")
    if kind == 'adam':
        settings: dict[str, Any] = {'type': 'Adam', 'lr': OFFSET_LR if lr is None else lr}
    elif lr_mult is not None or rules:
        settings = {} if lr_mult is None else {'lr_mult': lr_mult}
    else:
        return {}
    constructor = {'base_constructor': wrapper['constructor']} if wrapper.get('constructor') else {}
    return {'constructor': CONSTRUCTOR, **constructor, 'offset_optimizer': settings}


def _times(rate: float, factor: float) -> float:
    return float(f'{rate * factor:.12g}')


def describe_schedule(cfg: Mapping[str, Any]) -> str:
    """One line a person can check: length, schedulers and their boundaries."""
    length = Length.of(cfg)
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    words = {'epochs': 'epochs', 'iters': 'iterations'}
    parts = [f'{length.total} {words[length.unit]}']
    if 'lr' in optimizer:
        parts.append(f'{type_name(optimizer.get("type", "optimizer"))} lr {optimizer["lr"]}')
    if offsets := (cfg.get('optim_wrapper') or {}).get('offset_optimizer'):
        parts.append('offsets: ' + ', '.join(f'{key} {value}' for key, value in offsets.items()))
    for scheduler in _as_list(cfg.get('param_scheduler')):
        unit = words['epochs' if scheduler.get('by_epoch', True) else 'iters']
        shown = (*_STEP_LISTS, *_STEP_COUNTS, 'gamma', 'power', 'eta_min', 'begin', 'end')
        numbers = [f'{key} {scheduler[key]}' for key in shown if scheduler.get(key) is not None]
        if scheduler.get('milestones') == [0]:  # of _decay_within_an_epoch
            numbers = [f'once, at {scheduler.get("begin")}', f'gamma {scheduler["gamma"]}']
        parts.append(f'{type_name(scheduler["type"])} ({unit}: {", ".join(numbers)})')
    if interval := (cfg.get('train_cfg') or {}).get('val_interval'):
        parts.append(f'validation every {interval}')
    return '; '.join(parts)


def type_name(type_: Any) -> str:
    """Last part of a config's ``type``, be it a string with a scope, a class or a lazily imported object."""
    return (type_ if isinstance(type_, str) else getattr(type_, '__name__', str(type_))).rpartition('.')[2]


@dataclass(frozen=True)
class Length:
    """How long a config trains: ``total`` in ``unit`` ('epochs' or 'iters')."""

    total: int
    unit: str

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> Length:
        train_cfg = cfg.get('train_cfg') or {}
        for unit in ('epochs', 'iters'):
            total = train_cfg.get(f'max_{unit}')
            if isinstance(total, int) and total > 0:
                return cls(total, unit)
        raise ConfigError(
            'the config has neither train_cfg.max_epochs nor train_cfg.max_iters: there is no schedule '
            'to shorten; give the config that the baseline was trained with'
        )

    def counts(self, scheduler: Mapping[str, Any]) -> bool:
        """Whether a scheduler counts in the unit of the training loop."""
        return bool(scheduler.get('by_epoch', True)) == (self.unit == 'epochs')


@dataclass(frozen=True)
class _Scale:
    total: int
    ratio: float

    @classmethod
    def of(cls, length: Length, epoch_ratio: float) -> _Scale:
        if not is_number(epoch_ratio) or not 0 < epoch_ratio <= 1:
            raise ConfigError(
                f'epoch_ratio={epoch_ratio!r} is not in (0, 1]: it is the new length over the old; for a '
                'quarter give 0.25, as in the paper'
            )
        total = max(1, _round(length.total * epoch_ratio))
        return cls(total, total / length.total)

    def __call__(self, steps: float) -> int:
        return max(1, _round(steps * self.ratio)) if steps > 0 else int(steps)


def _round(number: float) -> int:
    return math.floor(number + 0.5)  # halves up; round() takes them to even


def _train_cfg(train_cfg: Mapping[str, Any], length: Length, scale: _Scale) -> Dict[str, Any]:
    changes: Dict[str, Any] = {f'max_{length.unit}': scale.total}
    for key in ('val_interval', 'val_begin'):
        if isinstance(train_cfg.get(key), int):
            changes[key] = scale(train_cfg[key])
    if train_cfg.get('dynamic_intervals'):
        changes['dynamic_intervals'] = [(scale(start), scale(step)) for start, step in train_cfg['dynamic_intervals']]
    return changes


def _schedulers(schedulers: Any, length: Length, scale: _Scale) -> Any:
    if isinstance(schedulers, Mapping) and 'type' not in schedulers:  # one list for each of several optimizers
        return {name: _schedulers(part, length, scale) for name, part in schedulers.items()}
    shortened: List[Dict[str, Any]] = []
    decays = False
    for scheduler in map(dict, _as_list(schedulers)):
        if type_name(scheduler['type']) in ('MultiStepLR', 'StepLR') and length.counts(scheduler):
            shortened += [] if decays else _paper_steps(scheduler, length, scale)
            decays = True  # of the whole schedule, also where its steps are in several schedulers
        elif scaled := _scaled(scheduler, scale):
            shortened.append(scaled)
    return shortened


def _scaled(scheduler: Dict[str, Any], scale: _Scale) -> Optional[Dict[str, Any]]:
    begin, end = scheduler.get('begin') or 0, scheduler.get('end')
    full_cycle = end is not None and scheduler.get('T_max') == end - begin
    _scale_span(scheduler, scale)
    if isinstance(end, int) and _too_short(scheduler, end - begin):
        return None
    for key in _STEP_COUNTS:
        if isinstance(scheduler.get(key), int):
            scheduler[key] = scale(scheduler[key])
    for key in _STEP_LISTS:
        if scheduler.get(key) is not None:
            scheduler[key] = [scale(step) for step in scheduler[key]]
    if full_cycle:
        scheduler['T_max'] = scheduler['end'] - (scheduler.get('begin') or 0)
    if type_name(scheduler['type']).startswith('Exponential') and scheduler.get('gamma') is not None:
        scheduler['gamma'] = scheduler['gamma'] ** (1 / scale.ratio)
    return scheduler


def _scale_span(scheduler: Dict[str, Any], scale: _Scale) -> None:
    for key in ('begin', 'end'):
        if is_number(scheduler.get(key)) and scheduler[key] < math.inf:
            scheduler[key] = scale(scheduler[key])


def _too_short(scheduler: Dict[str, Any], before: int) -> bool:
    # MMEngine's schedulers change the rate between their first and last step. One of a single step never gets that
    # far: a warm-up would leave the rate at its start factor for the whole training.
    length = scheduler['end'] - (scheduler.get('begin') or 0)
    return length < min(before, 1 if scheduler.get('convert_to_iter_based') else 2)


def _paper_steps(scheduler: Dict[str, Any], length: Length, scale: _Scale) -> List[Dict[str, Any]]:
    steps = sorted({_round(scale.total * part) for part in DECAY_AT})
    _scale_span(scheduler, scale)
    begin = scheduler.get('begin') or 0
    scheduler.pop('step_size', None)
    scheduler['gamma'] = DECAY_FACTOR
    if type_name(scheduler['type']) == 'StepLR':
        scheduler['type'] = 'MultiStepLR'
    if length.unit == 'epochs' and (len(steps) < len(DECAY_AT) or steps[-1] == scale.total):
        return [_decay_within_an_epoch(scheduler, scale.total * part) for part in DECAY_AT]
    # Milestones count from the scheduler's own begin.
    return [{**scheduler, 'milestones': [step - begin for step in steps if begin < step < scale.total]}]


def _decay_within_an_epoch(scheduler: Mapping[str, Any], epoch: float) -> Dict[str, Any]:
    # MMEngine multiplies milestones by the epoch's iterations and waits for exactly that number, which a fraction may
    # never meet; begin it makes whole. So each decay is the first step of a scheduler that begins there.
    kept = {key: value for key, value in scheduler.items() if key not in ('begin', 'convert_to_iter_based')}
    return {**kept, 'begin': math.ceil(epoch * 1e4) / 1e4, 'milestones': [0], 'convert_to_iter_based': True}


def _hook_changes(hook: Optional[Mapping[str, Any]], length: Length, scale: _Scale) -> Dict[str, Any]:
    if not isinstance(hook, Mapping):
        return {}
    keys: List[str] = [*(_HOOK_EPOCHS if length.unit == 'epochs' else _HOOK_ITERS)]
    if type_name(hook.get('type', '')) in ('CheckpointHook', 'EvalHook') and length.counts(hook):
        keys.append('interval')
    changes = {key: scale(hook[key]) for key in keys if isinstance(hook.get(key), int)}
    return {key: value for key, value in changes.items() if value != hook[key]}


def _as_list(schedulers: Any) -> List[Mapping[str, Any]]:
    if not schedulers:
        return []
    if not isinstance(schedulers, Mapping):
        return list(schedulers)
    if 'type' in schedulers:
        return [schedulers]
    return [scheduler for part in schedulers.values() for scheduler in _as_list(part)]
