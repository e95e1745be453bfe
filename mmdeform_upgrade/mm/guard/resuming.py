# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Which checkpoint of a work directory an interrupted run goes on from."""

from __future__ import annotations

import glob
import logging
import os
import re
import zipfile
from typing import Dict, List, Optional

from mmengine.logging import print_log

from ...errors import CheckpointError
from ..loading import read_as_it_is

_NAMES = re.compile(r'(?:epoch|iter)_\d+\.pth')


def find_resumable(work_dir: str) -> Optional[str]:
    """The checkpoint to go on from: what ``last_checkpoint`` names or, if that is not whole, the newest that is.

    MMEngine writes ``last_checkpoint`` and, by itself, checkpoints too, over what was there. A run that was killed
    meanwhile leaves them empty or cut off. Everything is read to its end here, checksums included.

    Args:
        work_dir: the run's folder.

    Returns:
        The path, or None where nothing was ever saved.

    Raises:
        CheckpointError: something was saved, and none of it is whole; names each file with the reason.
    """
    named = last_saved(work_dir)
    if named is not None and ('://' in named or os.path.isdir(named)):
        return named  # storage of other kinds, which has its own readers
    problems: Dict[str, str] = {}
    if named is not None:
        why = why_not_resumable(named)
        if why is None:
            return named
        problems[named] = why
    for path in _others(work_dir, named):
        why = why_not_resumable(path, exact=True)
        if why is None:
            _warn(
                f'{_listed(problems) or f"{work_dir} has no last_checkpoint"}. Going on from the last checkpoint '
                f'that is whole: {path}'
            )
            return path
        problems[path] = why
    if problems:
        raise CheckpointError(
            f'resume: no checkpoint in {work_dir} is whole: {_listed(problems)}. To start anew from '
            'the baseline, run without --resume; to go on from another file, give --resume PATH'
        )
    return None


def why_not_resumable(path: str, exact: bool = False) -> Optional[str]:
    """What keeps a run from going on from a file, or None.

    Args:
        path: a local file.
        exact: also ask for the optimizer's state, which a checkpoint may be saved without.
    """
    if not os.path.isfile(path):
        return 'there is no such file'
    try:
        checkpoint = read_as_it_is(path)
    except CheckpointError as error:
        return str(error).removeprefix(f'{path} ')
    if _is_damaged(path):
        return 'a checksum in it is wrong, so it is damaged'
    meta = checkpoint.get('meta')
    place = isinstance(meta, dict) and all(isinstance(meta.get(key), int) for key in ('epoch', 'iter'))
    lacking = [] if place else ['epoch and iteration']
    lacking += [key for key in ('message_hub', *(['optimizer'] if exact else [])) if key not in checkpoint]
    return f'it is no checkpoint of an interrupted run: it has no {" and no ".join(lacking)}' if lacking else None


def last_saved(work_dir: str) -> Optional[str]:
    """What MMEngine's ``last_checkpoint`` names, or None where there is none or an empty one."""
    try:
        with open(os.path.join(work_dir, 'last_checkpoint'), encoding='utf8', errors='replace') as file:
            return file.read().strip('\0 \n') or None
    except OSError:
        return None


def _others(work_dir: str, named: Optional[str]) -> List[str]:
    """Checkpoints beside the named one, newest first; its namesake in the folder before them, should that have moved.

    By time and not by number: an older run in the same folder may have gone further.
    """
    folders = {os.path.abspath(work_dir): None, **({os.path.dirname(os.path.abspath(named)): None} if named else {})}
    found = [
        path
        for folder in folders
        for path in glob.glob(os.path.join(glob.escape(folder), '*.pth'))
        if _NAMES.fullmatch(os.path.basename(path)) and (named is None or path != os.path.abspath(named))
    ]
    namesake = os.path.basename(named) if named else None
    return sorted(found, key=lambda path: (os.path.basename(path) == namesake, os.stat(path).st_mtime_ns), reverse=True)


def _is_damaged(path: str) -> bool:
    """PyTorch writes checksums into its zip and looks at none."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except zipfile.BadZipFile:
        return True


def _listed(problems: Dict[str, str]) -> str:
    return '; '.join(f'{path}: {why}' for path, why in problems.items())


def _warn(text: str) -> None:
    print_log(f'resume: {text}.', logger='current', level=logging.WARNING)
