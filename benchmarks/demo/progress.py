# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""One display of a job whose steps run two at a time: what is done above, what is under way below, all of it as a bar."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

_QUIET = 20.0  # seconds between two lines of a step where no terminal shows bars


class Progress:
    """The display, on the standard error.

    Args:
        expected: seconds that each step takes, by its title; the whole bar is measured in them.
    """

    def __init__(self, expected: dict[str, float]):
        self._expected, self._start = expected, time.monotonic()
        self._terminal, self._lock = sys.stderr.isatty(), threading.Lock()
        self._rows = [1, 2]
        self._whole = tqdm(
            total=sum(expected.values()),
            position=0,
            desc=f'{"the whole demo":<38}',
            bar_format='{desc} {bar:24} {percentage:3.0f} %   {elapsed}',
            disable=not self._terminal,
            leave=False,
        )

    @contextmanager
    def step(self, title: str, total: int = 1) -> Iterator[Step]:
        """A step under way; it is done when the context ends."""
        with self._lock:
            row = self._rows.pop(0)
        step = Step(self, title, total, row)
        began = time.monotonic()
        try:
            yield step
            step.update(total)
            step.close()
            self.line(f'{title:<38} {time.monotonic() - began:4.0f} s   {step.note}'.rstrip())
        finally:
            step.close()
            with self._lock:
                self._rows = sorted([*self._rows, row])

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._terminal:
            tqdm.write(text, file=sys.stderr)
        else:
            print(f'[{self.seconds:3.0f} s] {text}', file=sys.stderr, flush=True)

    def advance(self, title: str, part: float) -> None:
        with self._lock:
            self._whole.update(part * self._expected.get(title, 0))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def close(self) -> None:
        self._whole.close()


class Step:
    """A row of the display.

    Attributes:
        note: what the step has found so far.
    """

    def __init__(self, progress: Progress, title: str, total: int, row: int):
        self.note = ''
        self._progress, self._title, self._total, self._done = progress, title, total, 0.0
        self._said = time.monotonic()
        self._bar: Any = tqdm(
            total=total,
            position=row,
            desc=f'{title:<38}',
            bar_format='{desc} {bar:24} {percentage:3.0f} %{postfix}',
            disable=not progress._terminal,
            leave=False,
        )

    def update(self, done: float, note: str = '') -> None:
        """So much of the total is done."""
        self.note = note or self.note
        if done > self._done:
            self._progress.advance(self._title, (done - self._done) / self._total)
            self._bar.update(done - self._done)
            self._done = done
        self._bar.set_postfix_str(self.note)
        if not self._progress._terminal and time.monotonic() - self._said > _QUIET:
            self._said = time.monotonic()
            self._progress.line(f'{self._title}: {self._done:g} of {self._total}   {self.note}'.rstrip())

    def close(self) -> None:
        self._bar.close()
