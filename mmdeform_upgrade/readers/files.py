# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Writing a file whole or not at all."""

from __future__ import annotations

import glob
import os
import tempfile
from contextlib import contextmanager, suppress
from typing import Iterator


@contextmanager
def written_whole(path: str) -> Iterator[str]:
    """A temporary path in the same folder, which takes the place of ``path`` when the block ends without an error.

    A process that is killed, or a machine that stops, leaves ``path`` as it was before or as it is afterwards.
    """
    path = os.path.abspath(os.path.expanduser(os.fspath(path)))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f'.{os.path.basename(path)}.', dir=os.path.dirname(path))
    os.close(handle)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are for their owner alone
        _sync(temporary)  # or the name could reach the disk before the bytes
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    with suppress(OSError):  # not every system can
        _sync(os.path.dirname(path))


def remove_leftovers(folder: str, pattern: str) -> None:
    """Remove what killed processes left of files that match ``pattern``, such as ``'*.pth'``."""
    for path in glob.glob(os.path.join(glob.escape(folder), f'.{pattern}.????????')):
        with suppress(OSError):
            os.unlink(path)


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
