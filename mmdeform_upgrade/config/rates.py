# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A config's learning rates, changed: those of the whole fine-tune, and how the offsets are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..offsets.optimizer import OFFSET_LR
from .settings import is_number, listed_schedulers, settings_of, type_name

OFFSET_OPTIMIZER = 'adam'  # how an upgrade trains its offsets unless something else is said
CONSTRUCTOR = 'OffsetOptimizerConstructor'
_OF_OFFSETS = 'dcn_offset_lr_mult'
_NOT_OF_OFFSETS = ('bias_lr_mult', 'bias_decay_mult')  # the frameworks leave offsets out of these
_ABSOLUTE = ('eta_min', 'eta_max', 'min_value')  # rates that schedulers name themselves


def rate_changes(
    cfg: Mapping[str, Any],
    lr_mult: float = 1.0,
    offset_lr_mult: float | None = None,
    offset_optimizer: str | None = 'inherited',
    offset_lr: float | None = None,
    schedulers: Any = None,
) -> dict[str, Any]:
    """Other learning rates for a fine-tune, as a dict that merges into ``cfg``; empty where nothing changes.

    Args:
        cfg: a config with an ``optim_wrapper``.
        lr_mult: rate over the config's, those that schedulers name (``eta_min``, ``eta_max``) included.
        offset_lr_mult: rate of the offset branches over the optimizer's.
        offset_optimizer: ``'adam'``: the offsets take Adam's steps of rate ``offset_lr``; ``'same'``: they are trained
            by the config's optimizer; ``'inherited'``: ``'same'`` where ``offset_lr_mult`` is given, otherwise as the
            config says; None: ``OFFSET_OPTIMIZER``, unless the config or ``offset_lr_mult`` says how.
        offset_lr: 2e-3 unless given.
        schedulers: schedulers of the fine-tune, those of ``cfg`` unless given.

    Raises:
        ConfigError: a rate or factor is not positive, the config has no single optimizer with a rate, or two of the
            settings contradict each other.
    """
    for name, factor in {'lr_mult': lr_mult, 'offset_lr_mult': offset_lr_mult, 'offset_lr': offset_lr}.items():
        if factor is not None and not (is_number(factor) and 0 < factor < math.inf):
            raise ConfigError(f'{name}={factor!r} is not a positive number')
    cfg = settings_of(cfg)
    wrapper = cfg.get('optim_wrapper') or {}
    optimizer = wrapper.get('optimizer') or {}
    if (lr_mult != 1 or offset_lr_mult is not None) and 'lr' not in optimizer:
        raise ConfigError(
            'the config has no optim_wrapper.optimizer.lr to multiply: leave lr_mult and offset_lr_mult '
            'out, and set the rates of its optimizers in the new config'
        )
    offsets = _offset_changes(wrapper, offset_lr_mult, offset_optimizer, offset_lr)
    if lr_mult == 1:
        return {'optim_wrapper': offsets} if offsets else {}
    changes: dict[str, Any] = {'optim_wrapper': {'optimizer': {'lr': _times(optimizer['lr'], lr_mult)}, **offsets}}
    schedulers = schedulers or cfg.get('param_scheduler')
    if any(key in scheduler for scheduler in listed_schedulers(schedulers) for key in _ABSOLUTE):
        changes['param_scheduler'] = _multiplied(schedulers, lr_mult)
    return changes


def without_offset_optimizer(wrapper: Mapping[str, Any]) -> dict[str, Any]:
    """An ``optim_wrapper`` as it was before an upgrade gave the offsets an optimizer."""
    plain = {key: value for key, value in wrapper.items() if key not in ('offset_optimizer', 'base_constructor')}
    if type_name(plain.get('constructor', '')) == CONSTRUCTOR:
        del plain['constructor']
        plain.update({'constructor': base} if (base := wrapper.get('base_constructor')) else {})
    return plain


def check_offset_rates(cfg: Mapping[str, Any]) -> None:
    """Raise ConfigError for ``dcn_offset_lr_mult``, which MMEngine's constructors give to mmcv's own layers alone."""
    wrapper = cfg.get('optim_wrapper') or {}
    constructor = wrapper.get('constructor') or 'DefaultOptimWrapperConstructor'
    if _OF_OFFSETS in (wrapper.get('paramwise_cfg') or {}) and type_name(constructor) != CONSTRUCTOR:
        raise ConfigError(
            f"{type_name(constructor)} gives paramwise_cfg.{_OF_OFFSETS} to mmcv's own layers only: set optim_wrapper="
            f"dict(constructor='{CONSTRUCTOR}', base_constructor='{type_name(constructor)}'), which gives it to the "
            'upgraded ones, or take it out'
        )


def idle_rules(wrapper: Mapping[str, Any]) -> list[str]:
    """Rules of ``paramwise_cfg`` for the offsets' rate that an optimizer of their own does not follow."""
    if 'type' not in (wrapper.get('offset_optimizer') or {}):
        return []
    return _rules_of_offsets(wrapper.get('paramwise_cfg') or {})


def _rules_of_offsets(paramwise: Mapping[str, Any]) -> list[str]:
    keys = [f'custom_keys.{key}' for key in paramwise.get('custom_keys') or {} if 'conv_offset' in key]
    return keys + [_OF_OFFSETS] * (_OF_OFFSETS in paramwise)


def _offset_changes(
    wrapper: Mapping[str, Any], lr_mult: float | None, kind: str | None, lr: float | None
) -> dict[str, Any]:
    if kind == 'inherited':
        if lr is lr_mult is None:
            return {}
        kind = 'same'
    paramwise = wrapper.get('paramwise_cfg') or {}
    upgraded = type_name(wrapper.get('constructor') or '') == CONSTRUCTOR  # the config of another upgrade
    if kind is None:
        if upgraded and lr is lr_mult is None:
            return {}
        said = lr_mult is not None or _rules_of_offsets(paramwise)
        kind = 'same' if lr is None and (said or 'optimizer' not in wrapper) else OFFSET_OPTIMIZER
    if kind not in ('same', 'adam'):
        raise ConfigError(f"offset_optimizer={kind!r}: expected 'same' or 'adam'")
    if kind == 'adam' and lr_mult is not None:
        raise ConfigError(
            f"offset_lr_mult={lr_mult} multiplies the weights' rate, which the offsets' Adam does not use: give "
            "offset_lr, or offset_optimizer='same'"
        )
    if kind == 'same' and lr is not None:
        raise ConfigError(f"offset_lr={lr} is the rate of Adam: give offset_optimizer='adam', or offset_lr_mult")
    if kind == 'adam':
        settings: dict[str, Any] = {'type': 'Adam', 'lr': OFFSET_LR if lr is None else lr}
    elif upgraded or lr_mult is not None or any(rule in paramwise for rule in (_OF_OFFSETS, *_NOT_OF_OFFSETS)):
        settings = {'lr_mult': paramwise.get(_OF_OFFSETS, 1.0) if lr_mult is None else lr_mult}
    else:
        return {}
    if upgraded:
        return {'offset_optimizer': {'_delete_': True, **settings}}
    base = {'base_constructor': wrapper['constructor']} if wrapper.get('constructor') else {}
    return {'constructor': CONSTRUCTOR, **base, 'offset_optimizer': settings}


def _multiplied(schedulers: Any, factor: float) -> Any:
    if isinstance(schedulers, Mapping) and 'type' not in schedulers:
        return {name: _multiplied(part, factor) for name, part in schedulers.items()}
    return [
        {
            key: _times(value, factor) if key in _ABSOLUTE and type_name(scheduler['type']).endswith('LR') else value
            for key, value in scheduler.items()
        }
        for scheduler in listed_schedulers(schedulers)
    ]


def _times(rate: Any, factor: float) -> Any:
    if isinstance(rate, (list, tuple)):
        return [_times(value, factor) for value in rate]
    return float(f'{rate * factor:.12g}') if is_number(rate) else rate
