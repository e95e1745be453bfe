# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Finding and reading a config file."""

from __future__ import annotations

import os
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
    path = os.path.join(_package_configs(package, name), inside)
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
        raise ConfigError(f'{name}: {type(error).__name__}: {error}') from error
    _find_classes(cfg._cfg_dict)
    return cfg


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


def _package_configs(package: str, name: str) -> str:
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.origin:
        raise ConfigError(f'{name!r}: the package {package!r} is not installed')
    return os.path.join(os.path.dirname(spec.origin), '.mim', 'configs')
