# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""One run at a time in a work directory."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from typing import Any, Dict, Tuple

from mmengine.logging import print_log

from ...errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = '.run.lock'
# By process: a forked one has the parent's variables, and not its locks.
_held: Dict[Tuple[int, str], int] = {}


def hold(work_dir: str) -> bool:
    """Take a work directory for this process, until :func:`release` or the end of the process, however it ends.

    The file ``.run.lock`` says who has it and is no lock by itself: what counts is the system's lock on it. That is
    one that children do not share, so data workers that outlive a killed process keep nobody out.

    Args:
        work_dir: the folder, which is made if there is none.

    Returns:
        Whether this call took it; False where this process had it already.

    Raises:
        ConfigError: another process has it, or it cannot be written to.
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
        owner = os.read(handle, 4096)
        os.close(handle)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            _warn(
                f'work_dir={work_dir}: its file system has no locks ({error.strerror}), so nothing keeps a second '
                'run out of it'
            )
            return False
        raise ConfigError(
            f'work_dir={work_dir} is in use by {_described(owner)}: two runs there would overwrite each '
            "other's checkpoints. Wait for it, stop it, or give another --work-dir"
        ) from None
    _held[key] = handle
    _sign(handle)
    return True


def release(work_dir: str) -> None:
    """Give back what :func:`hold` took."""
    handle = _held.pop(_key(work_dir), None)
    if handle is not None:
        os.close(handle)


def held(work_dir: str) -> bool:
    """Whether this process has it."""
    return _key(work_dir) in _held


def _key(work_dir: str) -> Tuple[int, str]:
    return os.getpid(), os.path.realpath(os.path.expanduser(work_dir))


def _sign(handle: int) -> None:
    owner = {'pid': os.getpid(), 'host': socket.gethostname(), 'since': time.strftime('%Y-%m-%d %H:%M:%S')}
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(owner).encode(), 0)
    except OSError:  # a full disk: locked all the same
        return


def _described(owner: bytes) -> str:
    try:
        found: Dict[str, Any] = json.loads(owner)
        return f'process {found["pid"]} on {found["host"]}, since {found["since"]}'
    except (ValueError, KeyError, TypeError):
        return 'another process'


def _warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
