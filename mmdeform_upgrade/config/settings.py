# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What stands in a config, whichever way it is written."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from mmengine.config import Config


def type_name(type_: Any) -> str:
    """Last part of a config's ``type``, be it a string with a scope, a class or a lazily imported object."""
    return (type_.__name__ if inspect.isclass(type_) or inspect.isroutine(type_) else str(type_)).rpartition('.')[2]


def settings_of(cfg: Any) -> Any:
    """A config as plain dicts, in which what is lazily imported stays so: MMEngine writes that by its name.

    Raises:
        ConfigError: it is no config.
    """
    if hasattr(cfg, '_to_lazy_dict'):
        return cfg._to_lazy_dict()
    if not isinstance(cfg, Mapping):
        raise ConfigError(f'expected a config, got {cfg!r}: read its file with mmengine.config.Config.fromfile(PATH)')
    return cfg


def changed(cfg: Any, changes: Mapping[str, Any]) -> Config:
    """A copy of a config with what merges into it."""
    from mmengine.config import Config

    cfg = copy.deepcopy(cfg) if isinstance(cfg, Config) else Config(copy.deepcopy(dict(cfg)))
    cfg.merge_from_dict(copy.deepcopy(dict(changes)))
    return cfg


def is_number(value: Any) -> bool:
    """Whether a setting is a number, and not NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def listed_schedulers(schedulers: Any) -> list[Mapping[str, Any]]:
    """A config's schedulers in one list, be they one, a list, or a list for each of several optimizers."""
    if not schedulers:
        return []
    if not isinstance(schedulers, Mapping):
        return list(schedulers)
    if 'type' in schedulers:
        return [schedulers]
    return [scheduler for part in schedulers.values() for scheduler in listed_schedulers(part)]


def last_iteration(schedulers: Sequence[Mapping[str, Any]]) -> int:
    """The last iteration that is named by those of a config's schedulers that count them; 0 where there are none."""
    marks = [
        mark
        for given in schedulers
        if not given.get('by_epoch', True)
        for mark in (given.get('end'), given.get('total_steps'), *(given.get('milestones') or ()))
    ]
    return max((mark for mark in marks if is_number(mark) and mark < math.inf), default=0)
