# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""One run at a time in a work directory."""

from __future__ import annotations

import errno
import os
import socket
import time

from ...errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = '.run.lock'
_held: dict[tuple[int, str], int] = {}  # by process: a forked one has the parent's variables, and not its locks


def hold(work_dir: str) -> bool:
    """Take a work directory for this process, until :func:`release` or the end of the process, however it ends.

    ``.run.lock`` says who has it; what counts is the system's lock on that file. It is one that children do not share,
    so data workers that outlive a killed process keep nobody out. Systems without such locks keep nobody out either.

    Returns:
        Whether this call took it; False where this process had it already.

    Raises:
        ConfigError: another process has it, or nothing can be written there.
    """
    key = _key(work_dir)
    if fcntl is None or key in _held:
        return False
    try:
        os.makedirs(key[1], exist_ok=True)
        handle = os.open(os.path.join(key[1], NAME), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(
            f'work_dir={work_dir}: nothing can be written there ({error.strerror}); give another with --work-dir'
        ) from error
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(handle, 4096).decode(errors='replace')
        os.close(handle)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return False
        raise ConfigError(
            f'work_dir={work_dir} is in use by {owner or "another process"}: two runs there would overwrite each '
            "other's checkpoints. Wait for it, stop it, or give another --work-dir"
        ) from None
    _held[key] = handle
    owner = f'process {os.getpid()} on {socket.gethostname()}, since {time.strftime("%Y-%m-%d %H:%M:%S")}'
    os.ftruncate(handle, 0)
    os.pwrite(handle, owner.encode(), 0)
    return True


def release(work_dir: str) -> None:
    """Give back what :func:`hold` took."""
    handle = _held.pop(_key(work_dir), None)
    if handle is not None:
        os.close(handle)


def _key(work_dir: str) -> tuple[int, str]:
    return os.getpid(), os.path.realpath(os.path.expanduser(work_dir))
