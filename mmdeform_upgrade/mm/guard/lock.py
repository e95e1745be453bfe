# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""One run at a time in a work directory."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import IO

from ...errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def hold(work_dir: str) -> IO[str] | None:
    """Take a work directory until the returned file is closed, or the process ends, however it ends.

    ``.run.lock`` says who has it; what counts is the system's lock on that file. It is one that children do not share,
    so data workers that outlive a killed process keep nobody out. Where a file system has no locks, this is None.

    Raises:
        ConfigError: another process has it.
    """
    if fcntl is None:
        return None
    file = open(os.path.join(work_dir, '.run.lock'), 'a+')  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read()
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return None
        raise ConfigError(
            f'work_dir={work_dir} is in use by {owner or "another process"}: two runs there would overwrite each '
            "other's checkpoints. Wait for it, stop it, or give another --work-dir"
        ) from None
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}, since {time.strftime("%Y-%m-%d %H:%M:%S")}')
    file.flush()
    return file
