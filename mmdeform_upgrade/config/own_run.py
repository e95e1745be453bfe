# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What a config says of the run that it was written for, above all where that writes, set anew for another run."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any

_REPORTS = ('default_hooks', 'custom_hooks', 'val_evaluator', 'test_evaluator', 'visualizer', 'vis_backends')
# What the frameworks write, wherever it lies. To out_dir and test_out_dir of their hooks they add the run's own name.
_WRITES = ('outfile_prefix', 'outfile_path', 'out_file_path', 'output_dir', 'save_dir', 'json_trace_path')
_UNSET = {'resume': False, 'launcher': 'none', 'experiment_name': None}  # as dumped configs have them

Place = tuple[Any, ...]  # keys and indices of a setting


def own_run(cfg: Mapping[str, Any], work_dir: str | None, load_from: str | None = None) -> dict[str, Any]:
    """What another run changes of a config: its folder, what it writes, and that it starts anew.

    What hooks, evaluators and visualizers write goes into its folder: to the same place there if it lies in the folder
    of the old run. What they read there, an existing file, stays.

    Args:
        cfg: the config of the old run, as plain dicts.
        work_dir: folder of the new run; by default the old one's with ``-upgrade`` behind it.
        load_from: the baseline, which lies in the folder of the old run unless the config names another.
    """
    changes = {key: value for key, value in _UNSET.items() if cfg.get(key, value) not in (None, value)}
    named = cfg.get('work_dir')
    old = str(named or _folder(load_from)).rstrip('/')
    new = work_dir or (old and f'{old}-upgrade')
    if named or work_dir:
        changes['work_dir'] = new
    moved = copy.deepcopy({section: cfg[section] for section in _REPORTS if cfg.get(section)})
    for place, path in _strings(moved):
        if new and (to := _moved(place[-1], path, old, new)):
            node: Any = moved
            for step in place[:-1]:
                node = node[step]
            node[place[-1]] = to
            changes[place[0]] = moved[place[0]]
    return changes


def outputs_in(cfg: Mapping[str, Any], folder: str) -> Iterator[tuple[str, str]]:
    """Settings (dotted) and paths by which hooks, evaluators and visualizers of a config write into a folder."""
    for place, path in _reported(cfg):
        if _lies_in(path, folder) and _is_written(place[-1], path):
            yield '.'.join(map(str, place)), path


def describe_outputs(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """A line for each output of a config that goes elsewhere in another one."""
    moved = dict(_reported(after))
    return ''.join(
        f'\noutput: {".".join(map(str, place))} {path} -> {moved[place]}'
        for place, path in _reported(before)
        if moved.get(place, path) != path
    )


def inside(path: str, folder: str) -> bool:
    """Whether a path is a folder, or something in it."""
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    return path == folder or path.startswith(os.path.join(folder, ''))


def _folder(checkpoint: str | None) -> str:
    return '' if not checkpoint or '://' in str(checkpoint) else os.path.dirname(os.fspath(checkpoint))


def _moved(key: Any, path: str, old: str, new: str) -> str | None:
    if old and _lies_in(path, old) and _is_written(key, path):
        return os.path.normpath(os.path.join(new, os.path.relpath(os.path.realpath(path), os.path.realpath(old))))
    if key in _WRITES and '://' not in path and not inside(path, new):
        return os.path.join(new, os.path.basename(os.path.normpath(path)))
    return None


def _lies_in(path: str, folder: str) -> bool:
    # In the folder itself, every word would be the name of something in it.
    known = os.path.isabs(path) or not inside(os.curdir, folder)
    return '://' not in path and known and inside(path, folder)


def _is_written(key: Any, path: str) -> bool:
    return key in _WRITES or not os.path.isfile(path)


def _reported(cfg: Mapping[str, Any]) -> Iterator[tuple[Place, str]]:
    """Texts in what hooks, evaluators and visualizers are told."""
    return _strings({section: cfg.get(section) for section in _REPORTS})


def _strings(node: Any, *place: Any) -> Iterator[tuple[Place, str]]:
    """Texts in a config and where they stand."""
    if isinstance(node, str):
        yield place, node
    elif isinstance(node, (Mapping, list, tuple)):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _strings(value, *place, key)
