# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Checkpoints that are whole: written so, and found again."""

from __future__ import annotations

import errno
import glob
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from mmengine.fileio import LocalBackend
from mmengine.logging import print_log
from mmengine.runner import find_latest_checkpoint

from ...errors import CheckpointError, TrainingError
from ...files import atomic_write
from ...readers import read_checkpoint
from ..loading import lacking_for_resume

BACKEND = 'WholeFiles'  # as in CheckpointHook(backend_args=dict(backend='WholeFiles'))


class WholeFiles(LocalBackend):
    """Local files that stand under their name as soon as all of them is on the disk, and not before.

    MMEngine's own backend writes over a file in place, and its ``CheckpointHook`` removes a checkpoint before the one
    that replaces it is written. Here, what is removed stays until the next file stands in its folder.
    """

    _to_remove: ClassVar[dict[str, list[str]]] = {}  # by folder; MMEngine makes a new backend for every call

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes.

        Raises:
            TrainingError: they could not be written; whatever stood under the name still stands.
        """
        path = os.path.abspath(filepath)
        try:
            with atomic_write(path) as temporary, open(temporary, 'wb') as file:
                file.write(obj)
        except OSError as error:
            room = 'make room, or keep fewer (default_hooks.checkpoint.max_keep_ckpts)'
            what_to_do = room if error.errno in (errno.ENOSPC, errno.EDQUOT) else 'set this right'
            raise TrainingError(
                f'{path} ({len(obj) / 1e6:.3g} MB) could not be written: {error.strerror or error}. Checkpoints that '
                f'were written before stay; {what_to_do}, and continue with --resume.'
            ) from error
        for old in self._to_remove.pop(os.path.dirname(path), []):
            if old != path:
                with suppress(FileNotFoundError):
                    os.remove(old)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file as soon as the next one is written beside it."""
        path = os.path.abspath(filepath)
        self._to_remove.setdefault(os.path.dirname(path), []).append(path)


def find_resumable(work_dir: str) -> str | None:
    """The checkpoint to resume from: what ``last_checkpoint`` names or, if that is not whole, the newest that is.

    Returns:
        The path, or None where nothing was ever saved.

    Raises:
        CheckpointError: something was saved, and none of it is whole; names each file with the reason.
    """
    named = (find_latest_checkpoint(work_dir) or '').strip('\0 \n')  # a run that was killed may leave zeros in it
    if '://' in named or os.path.isdir(named):
        return named  # storage of other kinds, which has its own readers
    folders = dict.fromkeys(
        map(os.path.abspath, (work_dir, os.path.dirname(named) or work_dir))
    )  # CheckpointHook's out_dir
    saved = [
        path
        for folder in folders
        for path in glob.glob(os.path.join(glob.escape(folder), '*.pth'))
        if re.fullmatch(r'(?:epoch|iter)_\d+\.pth', os.path.basename(path))
    ]
    saved.sort(key=os.path.getmtime, reverse=True)  # not by number: an older run may have gone further
    problems: list[str] = []
    for path in dict.fromkeys([named, *saved] if named else saved):
        why = why_not_resumable(path)
        if why is None:
            if path != named:
                found = '; '.join(problems) or f'{work_dir} has no last_checkpoint'
                text = f'resume: {found}. Resuming from the newest checkpoint that is whole: {path}.'
                print_log(text, logger='current', level=logging.WARNING)
            return path
        problems.append(f'{path}: {why}')
    if problems:
        raise CheckpointError(
            f'resume: no checkpoint in {work_dir} is whole: {"; ".join(problems)}. To start anew from '
            'the baseline, run without --resume; to resume from another file, give --resume PATH'
        )
    return None


def why_not_resumable(path: str) -> str | None:
    """What keeps a run from being resumed from a local file, or None."""
    if not os.path.isfile(path):
        return 'there is no such file'
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        return str(error).removeprefix(f'{path} ')
    lacking = lacking_for_resume(checkpoint)
    return f'it is no checkpoint of an interrupted run: it has no {" and no ".join(lacking)}' if lacking else None
