# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Finding a config, reading it, and what stands in it, whichever way it is written."""

from __future__ import annotations

import copy
import inspect
import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from mmengine.config import Config


def find_config(name: str) -> str:
    """File of a config: a path as it is, ``'mmseg::deeplabv3/NAME.py'`` among the configs of an installed package.

    MMEngine looks for mmseg's under the name mmsegmentation, which onedl-mmsegmentation does not have. Configs that work
    with both call this function in ``_base_``, where MMEngine takes an expression and no import: ``__import__``.

    Raises:
        ConfigError: there is no such file or package.
    """
    package, external, inside = name.partition('::')
    if not external:
        if not os.path.isfile(name):
            raise ConfigError(f'there is no config file {name!r}')
        if not name.endswith(('.py', '.yml', '.yaml', '.json')):
            raise ConfigError(f'{name!r} is no config, which ends in .py: give the config first, then the checkpoint')
        return name
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.origin:
        raise ConfigError(f'{name!r}: the package {package!r} is not installed')
    path = os.path.join(os.path.dirname(spec.origin), '.mim', 'configs', inside)
    if not os.path.isfile(path):
        raise ConfigError(f'{name!r}: there is no config file {path!r}')
    return path


def read_config(name: str) -> Config:
    """The config that :func:`find_config` finds.

    Raises:
        ConfigError: also where it cannot be run, or merged with what it inherits.
    """
    from mmengine.config import Config

    path = find_config(name)
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program
        raise ConfigError(f'{name}: {type(error).__name__}: {error}{_remedy(error)}') from error
    _find_classes(cfg._cfg_dict)
    return cfg


def _remedy(error: Exception) -> str:
    if 'mmsegmentation is not installed' not in str(error) or find_spec('mmseg') is None:
        return ''
    found = "_base_ = [__import__('mmdeform_upgrade').config.find_config('mmseg::NAME.py')]"
    return f' (mmseg is installed under another name, onedl-mmsegmentation: write {found})'


def _find_classes(node: Any) -> None:
    """MMEngine dumps a class of a pure Python config as the name of its place, by which registries miss some: mmcv's
    operators, and what stands in a module that a function of the same name hides."""
    from mmengine.config.lazy import LazyObject

    if not isinstance(node, dict):
        for item in node if isinstance(node, (list, tuple)) else ():
            _find_classes(item)
        return
    for key, value in dict.items(node):
        if str(key).endswith('type') and isinstance(value, str) and value.count('.') > 1:
            node[key] = LazyObject(*value.rsplit('.', 1))
        _find_classes(value)


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
    cfg.merge_from_dict(copy.deepcopy(mergeable(changes, settings_of(cfg))))
    return cfg


def mergeable(changes: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Changes whose dicts replace what is no dict, such as ``default_hooks = None``: MMEngine refuses to merge these."""
    found = {}
    for key, value in changes.items():
        if isinstance(value, Mapping) and key in settings and '_delete_' not in value:
            known = settings[key]
            value = mergeable(value, known) if isinstance(known, Mapping) else {'_delete_': True, **value}
        found[key] = value
    return found


def is_number(value: Any) -> bool:
    """Whether a setting is a number, and not NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def is_count(value: Any) -> bool:
    """Whether a setting is a finite number: MMEngine takes 1e5 for a number of iterations, and configs divide."""
    return is_number(value) and abs(value) < math.inf


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
    marks: list[Any] = []
    for given in schedulers:
        if not given.get('by_epoch', True):
            marks += [given.get('end'), given.get('total_steps'), *(given.get('milestones') or ())]
            lengths: Any = (given.get('T_max'), sum(given.get('periods') or ()))  # of cosines, from where they begin
            marks += [(given.get('begin') or 0) + length for length in lengths if is_count(length)]
    return int(max(filter(is_count, marks), default=0))


def warms_up(scheduler: Mapping[str, Any]) -> bool:
    """Whether a scheduler leads up to the rates of the optimizer, and does nothing else."""
    if not type_name(scheduler['type']).startswith(('Linear', 'Constant')):
        return False
    return bool(scheduler.get('start_factor', scheduler.get('factor', 1 / 3)) < scheduler.get('end_factor', 1))


def scheduled_iterations(schedulers: Sequence[Mapping[str, Any]]) -> int:
    """The iterations of a training by its schedulers; 0 where they do not say, as warm-ups alone do not."""
    if any(given.get('by_epoch', True) for given in schedulers):
        return 0
    return last_iteration([given for given in schedulers if not warms_up(given)])


def unwrapped_datasets(dataset: Any) -> list[Any]:
    """The settings of a loader's data sets, without ``RepeatDataset``, ``ConcatDataset`` and the like around them."""
    if 'datasets' in dataset:
        return [inner for given in dataset.datasets for inner in unwrapped_datasets(given)]
    return unwrapped_datasets(dataset.dataset) if 'dataset' in dataset else [dataset]
