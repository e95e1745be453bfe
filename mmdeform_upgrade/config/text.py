# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The text of a config file that changes another one, in either of MMEngine's two kinds of Python config."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .settings import changed, mergeable, settings_of

if TYPE_CHECKING:
    from mmengine.config import Config

_REGISTER = (
    "import_module('mmdeform_upgrade')  # registers its names: MMEngine reads no custom_imports in such a config"
)


def config_text(base: str, out: str, baseline: Config, changes: Mapping[str, Any]) -> str:
    """Text of a config file at ``out``: what changes of ``base``, or all of it where a file cannot inherit from that.

    ``base`` is a file, or ``'mmdet::NAME.py'``; ``baseline`` is what it says, and the ``changes`` merge into it.
    """
    from mmengine.config import Config

    full, changes = changed(baseline, changes), mergeable(changes, settings_of(baseline))
    if '::' in base:
        return inheriting_text(base, out, changes) if _is_an_address(base) else whole_text(full)
    if not Config._is_lazy_import(base):
        return inheriting_text(base, out, changes)
    steps = _beside(base, out).removesuffix('.py').split(os.sep)
    up = steps.count(os.pardir)
    if not all(step.isidentifier() and not iskeyword(step) for step in steps[up:]):
        return whole_text(full)  # an import statement has no name for the baseline
    names = _ImportedNames(full.to_dict())
    settings = sorted(names.written(changes).items())
    body = ''.join(_merged(key, value, baseline.get(key)) for key, value in settings)
    module = '.' * (up + 1) + '.'.join(steps[up:])
    inherits = f'from mmengine.config import read_base\n\nwith read_base():\n    from {module} import *\n\n'
    return _pure_python(inherits, names, body, full)


def whole_text(cfg: Config) -> str:
    """Text of a config file that inherits nothing."""
    names = _ImportedNames(cfg.to_dict())
    body = _pretty(names.written(cfg._to_lazy_dict()))
    return _pure_python('', names, body, cfg) if names.statements() else body


def inheriting_text(base: str, out: str, changes: Mapping[str, Any]) -> str:
    """Text of a config file at ``out`` that inherits the one at ``base``, which is not pure Python."""
    base = base if '::' in base else _beside(base, out)
    return f'_base_ = [{base!r}]\n' + _pretty(_ImportedNames(None).written(dict(changes)))


def _beside(base: str, out: str) -> str:
    """The path from a file to another, as the system goes it: ``..`` of a linked folder is not where the link stands."""
    folder, name = os.path.split(base)
    return os.path.relpath(os.path.join(os.path.realpath(folder), name), os.path.realpath(os.path.dirname(out)))


def _is_an_address(base: str) -> bool:
    """Whether MMEngine finds it. It looks for mmseg as 'mmsegmentation', which onedl-mmsegmentation is not called."""
    from mmengine.config import Config

    with TemporaryDirectory() as folder:  # Config.fromstring leaves its file behind where it raises
        path = Path(folder, 'inherits.py')
        path.write_text(f'_base_ = [{base!r}]', encoding='utf8')
        try:
            Config.fromfile(path)
        except ImportError:
            return False
    return True


def _pure_python(inherits: str, names: _ImportedNames, body: str, cfg: Config) -> str:
    """A config whose settings hold classes and functions themselves, since frameworks compare and call them."""
    if 'mmdeform_upgrade' not in (cfg.get('custom_imports') or {}).get('imports', ()):
        return f'{inherits}{names.statements()}\n{body}'
    return f'from importlib import import_module\n\n{inherits}{names.statements()}\n{_REGISTER}\n\n{body}'


def _merged(key: str, value: Any, known: Any) -> str:
    merges = isinstance(value, Mapping) and isinstance(known, Mapping)
    if isinstance(value, Mapping) and not merges:
        value = {name: setting for name, setting in value.items() if name != '_delete_'}
    text = _pretty({key: value}).rstrip()  # laid out by yapf, or not
    if merges:
        text = f'{key}.merge({text.partition("=")[2].lstrip()})'
    return f'{text}\n'


def _pretty(settings: Mapping[str, Any]) -> str:
    from mmengine.config import Config

    return Config(settings).pretty_text


class _Code:
    """A piece of Python, which MMEngine's formatter writes as it is."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


class _ImportedNames:
    """Names for the classes and functions in settings, and the statements that import them.

    ``taken`` are names that the config needs for its settings; None where it cannot import, and holds names alone.
    """

    def __init__(self, taken: Mapping[str, Any] | None):
        self._taken = None if taken is None else set(taken)
        self._names: dict[tuple[str, str], str] = {}

    def written(self, value: Any) -> Any:
        """A value with code in place of what has no literal."""
        from mmengine.config.lazy import LazyAttr, LazyObject

        if isinstance(value, dict):
            return {key: self.written(item) for key, item in dict.items(value)}  # leaves lazy objects as they are
        if isinstance(value, (list, tuple)):
            return type(value)(map(self.written, value))
        if isinstance(value, float) and not math.isfinite(value):
            return _Code(f"float('{value}')")
        if isinstance(value, LazyAttr):
            return self._imported(*_module_and_name(f'{value.module}.{value}'))
        if isinstance(value, LazyObject):
            return self._imported(value.module, str(value))
        if inspect.isclass(value) or inspect.isroutine(value):
            return self._imported(value.__module__, value.__qualname__)
        return value

    def statements(self) -> str:
        """One for each name, sorted."""
        return ''.join(
            f'from {module} import {name}{"" if name == alias else f" as {alias}"}\n'
            for (module, name), alias in sorted(self._names.items())
        )

    def _imported(self, module: str, path: str) -> _Code | str:
        if self._taken is None:
            return f'{module}.{path}'
        name, *rest = path.split('.')
        if (module, name) not in self._names:
            alias = name
            while alias in self._taken:
                alias += '_'
            self._taken.add(alias)
            self._names[module, name] = alias
        return _Code('.'.join((self._names[module, name], *rest)))


def _module_and_name(path: str) -> tuple[str, str]:
    """``'torch.nn.functional.relu'`` -> the module, and the name in it."""
    parts = path.split('.')
    for count in range(len(parts) - 1, 1, -1):
        with suppress(ImportError):
            import_module('.'.join(parts[:count]))
            return '.'.join(parts[:count]), '.'.join(parts[count:])
    return parts[0], '.'.join(parts[1:])
