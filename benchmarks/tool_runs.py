# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Running the project's own tools one after the other, with progress, and reading back what they measured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Deque, Dict, Iterator, List, Optional, Tuple

from tqdm import tqdm

from mmdeform_upgrade.config import Length
from mmdeform_upgrade.errors import UpgradeError

ROOT = Path(__file__).resolve().parents[1]
_EPOCHS = re.compile(r'Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\]')
_ITERS = re.compile(r'Iter\(train\)\s+\[\s*(\d+)/\d+\]')


def tool_path(name: str) -> Path:
    """A script of the checkout: of ``tools/``, or of ``benchmarks/`` where the name begins so."""
    return ROOT / name if name.startswith('benchmarks/') else ROOT / 'tools' / name


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))


def run_tool(name: str, *args: object, title: str, length: Optional[Length] = None, log: Optional[Path] = None) -> str:
    """Run one of the project's tools as a process of its own, with a progress bar.

    Args:
        name: file in ``tools/``.
        *args: its command line.
        title: what the bar says.
        length: how long it trains, if it trains.
        log: file that gets the whole output.

    Returns:
        The last lines of the output.

    Raises:
        UpgradeError: the tool failed; its last lines are in the message.
    """
    with tqdm(
        total=length.total if length else None,
        desc=f'{title:<32}',
        unit=f' {length.unit}' if length else 'it',
        mininterval=0.5 if sys.stderr.isatty() else 30,
        bar_format=None if length else '{desc} {elapsed}',
    ) as bar:
        text = follow_tool(name, *args, title=title, log=log, on_line=lambda line: _advance(bar, line, length))
        if length:
            bar.update(length.total - bar.n)
    return text


def follow_tool(
    name: str,
    *args: object,
    title: str,
    log: Optional[Path] = None,
    on_line: Callable[[str], None] = lambda line: None,
    env: Mapping[str, str] = {},
) -> str:
    """:func:`run_tool` without a bar: ``on_line`` is told each line of the output."""
    command = [sys.executable, '-u', str(tool_path(name)), *map(str, args)]
    lines: Deque[str] = deque(maxlen=40)
    with (
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            env={**os.environ, 'PYTHONUNBUFFERED': '1', 'PYTHONPATH': _python_path(), **env},
        ) as process,
        open(log or os.devnull, 'w', encoding='utf8') as file,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            lines.append(line)
            on_line(line)
    if process.returncode:
        raise UpgradeError(f'{title}: {" ".join(command)} ended with status {process.returncode}:\n' + ''.join(lines))
    return ''.join(lines)


def _advance(bar: tqdm, line: str, length: Optional[Length]) -> None:
    done = steps_done(line) if length else None
    if done is None:
        bar.update(0)  # the clock goes on
        return
    bar.update(done - bar.n)
    loss = re.search(r' loss: ([\d.]+)', line)
    if loss:
        bar.set_postfix_str(f'loss {loss.group(1)}')


def steps_done(line: str) -> Optional[float]:
    """Epochs or iterations behind a line of a training log, if it says so."""
    if found := _EPOCHS.search(line):
        epoch, step, steps = map(int, found.groups())
        return round(epoch - 1 + step / steps, 2)
    found = _ITERS.search(line)
    return float(found.group(1)) if found else None


def read_curve(work_dir: Path, metric: str) -> List[Tuple[int, float]]:
    """Validation scores that a run logged: (epoch or iteration, score), each step's latest, in order."""
    return sorted(
        {int(record['step']): float(record[metric]) for record in _scalars(work_dir) if metric in record}.items()
    )


def read_train_seconds(work_dir: Path) -> float:
    """Time that a run spent in training steps and in waiting for data, over all its stretches."""
    seconds = {
        int(record['iter']): float(record['time'])
        for record in _scalars(work_dir)
        if 'time' in record and 'iter' in record
    }
    steps = sorted(seconds)
    return sum(seconds[step] * (step - before) for before, step in zip([0, *steps], steps, strict=False))


def _scalars(work_dir: Path) -> Iterator[Dict[str, Any]]:
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in file.read_text(encoding='utf8').splitlines():
            yield json.loads(line)


def read_test_score(work_dir: Path, metric: str) -> float:
    """The score of the latest ``tools/test.py`` in a work directory, in full precision."""
    for file in sorted(work_dir.glob('*/*.json'), reverse=True):
        record = json.loads(file.read_text(encoding='utf8').splitlines()[0])
        if metric in record and file.parent.name == file.stem:
            return float(record[metric])
    raise UpgradeError(f'{work_dir}: no test has written {metric} there')
