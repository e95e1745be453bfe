# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What a config says of the run that it was written for, above all where that writes, set anew for another run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

_REPORTS = ('default_hooks', 'custom_hooks', 'val_evaluator', 'test_evaluator', 'visualizer', 'vis_backends')
# What the frameworks write, wherever it lies. To out_dir and test_out_dir of their hooks they add the run's own name.
_WRITES = ('outfile_prefix', 'outfile_path', 'out_file_path', 'output_dir', 'save_dir', 'json_trace_path', 'dir')
# By which init_kwargs of a tracker (wandb, Aim, Neptune, ClearML, DVCLive) continue a run that it knows.
_TRACKED = (
    *('id', 'resume', 'resume_from', 'fork_from', 'run_hash', 'with_id', 'custom_run_id'),
    *('continue_last_task', 'reuse_last_task_id'),
)
_UNSET = {'resume': False, 'launcher': 'none', 'experiment_name': None}  # as dumped configs have them

Place = tuple[Any, ...]  # keys and indices of a setting


def own_run(cfg: Mapping[str, Any], work_dir: str | None, load_from: str | None = None) -> dict[str, Any]:
    """What another run changes of a config: its folder, what it writes, and that it starts anew.

    What hooks, evaluators and visualizers write goes into its folder: to the same place there if it lies in the folder
    of the old run. What they read there, an existing file, stays. Trackers begin a run of their own.

    Args:
        cfg: the config of the old run, as plain dicts.
        work_dir: folder of the new run; by default the old one's with ``-upgrade`` behind it.
        load_from: the baseline, which lies in the folder of the old run unless the config names another.
    """
    changes = {key: value for key, value in _UNSET.items() if cfg.get(key, value) not in (None, value)}
    named = cfg.get('work_dir')
    beside = '' if '://' in str(load_from or '') else os.path.dirname(os.fspath(load_from or ''))
    old = str(named or beside).rstrip('/')
    new = work_dir or (old and f'{old}-upgrade')
    if named or work_dir:
        changes['work_dir'] = new
    if not named and not os.path.isfile(os.path.join(beside, 'last_checkpoint')):
        old = ''  # no folder of a run: what lies beside the checkpoint may be data
    for section in _REPORTS:
        if (moved := _of_new_run(cfg.get(section), (section,), old, new)) != cfg.get(section):
            changes[section] = moved
    return changes


def outputs_in(cfg: Mapping[str, Any], folder: str) -> Iterator[tuple[str, str]]:
    """Settings (dotted) and paths by which hooks, evaluators and visualizers of a config write into a folder."""
    for place, path in _reported(cfg):
        if isinstance(path, str) and _lies_in(path, folder) and _is_written(place[-1], path):
            yield '.'.join(map(str, place)), path


def describe_outputs(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """A line for each output of a config that goes elsewhere in another one."""
    moved = dict(_reported(after))
    return ''.join(
        f'\noutput: {".".join(map(str, place))} {path} -> {moved[place]}'
        for place, path in _reported(before)
        if isinstance(path, str) and moved.get(place) != path
    )


def inside(path: str, folder: str) -> bool:
    """Whether a path is a folder, or something in it."""
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    return path == folder or path.startswith(os.path.join(folder, ''))


def _of_new_run(node: Any, place: Place, old: str, new: str) -> Any:
    if isinstance(node, Mapping):
        return {key: _of_new_run(value, (*place, key), old, new) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(_of_new_run(value, (*place, index), old, new) for index, value in enumerate(node))
    if place[-2:-1] == ('init_kwargs',) and place[-1] in _TRACKED:
        return None
    return (_moved(place[-1], node, old, new) if new and isinstance(node, str) else None) or node


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


def _reported(cfg: Mapping[str, Any]) -> Iterator[tuple[Place, Any]]:
    """What hooks, evaluators and visualizers are told, and where it stands."""
    return _leaves({section: cfg.get(section) for section in _REPORTS})


def _leaves(node: Any, *place: Any) -> Iterator[tuple[Place, Any]]:
    if not isinstance(node, (Mapping, list, tuple)):
        yield place, node
        return
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        yield from _leaves(value, *place, key)
