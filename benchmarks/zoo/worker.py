# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A process that checks configs one after the other; it may crash or hang without harm to the sweep."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any, Optional, Tuple

from . import reasons

Task = Tuple[str, Optional[str]]  # a config, and the config whose model it repeats

_RECYCLED_AFTER = 100  # configs; whatever a framework leaks is gone then


class Worker:
    """One process at a time, started anew when it dies, hangs or gets old.

    Args:
        limit: seconds that a config may take.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self.task: Optional[Task] = None
        self._process: Any = None
        self._done = 0

    def give(self, task: Task) -> None:
        """Start a task; take its record with :meth:`collect`."""
        if self._process is None:
            self._start()
        self.task, self._since = task, time.monotonic()
        self.connection.send(task)

    def collect(self) -> Optional[dict]:
        """The record of the task, or None while it is being worked on."""
        assert self.task is not None
        late = time.monotonic() - self._since > self.limit
        if not (late or self.connection.poll()):
            return None
        try:
            record: dict = (
                self.connection.recv()
                if self.connection.poll()
                else self._lost(reasons.TOO_LONG, f'no result after {self.limit:.0f} s')
            )
        except (EOFError, ConnectionError):
            self._process.join()
            record = self._lost(reasons.OURS, f'its process ended with status {self._process.exitcode}')
        self.task = None
        self._done += 1
        if self._done >= _RECYCLED_AFTER:
            self.stop()
        return record

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self.connection.close()
            self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context('spawn')
        self.connection, other = context.Pipe()
        self._process = context.Process(target=work, args=(other,), daemon=True)
        self._process.start()
        other.close()
        self._done = 0

    def _lost(self, reason: str, detail: str) -> dict:
        assert self.task is not None
        self.stop()
        return {
            'config': self.task[0],
            'reason': reason,
            'detail': detail,
            'seconds': round(time.monotonic() - self._since, 1),
        }


def work(connection: Connection) -> None:
    """Answer tasks until the other end closes."""
    import torch

    import mmdeform_upgrade  # noqa: F401  registers the builder

    from .check import check_config, check_duplicate

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter('ignore')
    with (
        open(os.devnull, 'w') as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
        contextlib.suppress(EOFError, BrokenPipeError),
    ):  # the sweep was stopped
        while True:
            name, same_as = connection.recv()
            connection.send(check_duplicate(name, same_as) if same_as else check_config(name))
            gc.collect()
