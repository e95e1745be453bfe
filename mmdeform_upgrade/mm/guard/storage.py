# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A file backend of MMEngine's whose files are there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Dict, List, Union

from mmengine.fileio import LocalBackend

from ...errors import TrainingError
from ...readers import written_whole

BACKEND = 'WholeFiles'  # as in CheckpointHook(backend_args=dict(backend='WholeFiles'))
_FULL = (errno.ENOSPC, errno.EDQUOT)


class WholeFiles(LocalBackend):
    """Local files, for ``CheckpointHook(backend_args=dict(backend='WholeFiles'))``.

    MMEngine's own backend writes over the file in place, and its ``CheckpointHook`` removes the checkpoint before
    the one that replaces it is written: a run that is killed in between, or finds the disk full, is left without
    either. Here a file appears under its name when all of it is on the disk, and what is removed stays until the
    next file stands in its folder.
    """

    # MMEngine makes a new object for every call.
    _waiting: ClassVar[Dict[str, List[str]]] = {}

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write bytes.

        Raises:
            TrainingError: they could not be written; whatever stood under the name still stands.
        """
        path = os.path.abspath(filepath)
        try:
            with written_whole(path) as temporary, open(temporary, 'wb') as file:
                file.write(obj)
        except OSError as error:
            raise TrainingError(_why_not_written(path, len(obj), error)) from error
        for old in self._waiting.pop(os.path.dirname(path), []):
            if old != path:
                with suppress(FileNotFoundError):
                    os.remove(old)

    def remove(self, filepath: Union[str, Path]) -> None:
        """Remove a file as soon as the next one is written beside it."""
        path = os.path.abspath(filepath)
        self._waiting.setdefault(os.path.dirname(path), []).append(path)


def _why_not_written(path: str, size: int, error: OSError) -> str:
    what = f'{path} could not be written: {error.strerror or error}'
    if error.errno not in _FULL:
        return f'{what}. Checkpoints that were written before stay; set this right and go on with --resume.'
    folder = os.path.dirname(path)
    free = shutil.disk_usage(folder if os.path.isdir(folder) else os.path.dirname(folder)).free
    return (
        f'{what}: it needs {_megabytes(size)}, and {_megabytes(free)} are free. Checkpoints that were written '
        'before stay; make room, or keep fewer (default_hooks.checkpoint.max_keep_ckpts), and go on with --resume.'
    )


def _megabytes(size: int) -> str:
    return f'{size / 1e6:.3g} MB'
