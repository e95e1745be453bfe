# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""How many runs at a time a machine should have: tried for a short while, before a long plan."""

from __future__ import annotations

from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Dict, Sequence

from mmdeform_upgrade.errors import UpgradeError

from ..tool_runs import read_step_seconds
from .side_by_side import Job, run_side_by_side


def steps_per_second(jobs: Sequence[Job], counts: Sequence[int], seconds: float) -> Dict[int, float]:
    """Training steps a second of all runs together, for each number of runs at a time.

    The plan's first trainings are started in a temporary folder and killed after a while; the plan's own runs are not
    touched.

    Args:
        jobs: of a plan. Those that start from a baseline are passed over.
        counts: numbers of runs to try.
        seconds: how long each number is tried, the start of the runs included.

    Raises:
        UpgradeError: the plan has fewer trainings, or one of them logged no step in that time.
    """
    trainings = [job for job in jobs if job.waits_for is None]
    if len(trainings) < max(counts):
        raise UpgradeError(
            f'{max(counts)} runs at a time cannot be tried: the plan has {len(trainings)} that need no other run first'
        )
    return {count: _measured(trainings[:count], seconds) for count in counts}


def _measured(jobs: Sequence[Job], seconds: float) -> float:
    with TemporaryDirectory() as folder:
        tried = [
            replace(job, experiment=replace(job.experiment, work_dir=f'{folder}/{number}'))
            for number, job in enumerate(jobs)
        ]
        run_side_by_side(tried, len(tried), seconds)
        times = [read_step_seconds(job.place) for job in tried]
        said = [_said(job) for job in tried]
    for time, end in zip(times, said, strict=True):
        if time is None:
            raise UpgradeError(f'a run logged no training step in {seconds:g} seconds: give more, or see why:\n{end}')
    return sum(1 / time for time in times if time)


def _said(job: Job) -> str:
    """The end of what a run printed: while it trained, or before."""
    for suffix in ('.txt', '.log'):
        log = job.place.with_name(job.place.name + suffix)
        if log.is_file() and (text := log.read_text(encoding='utf8')):
            return text[-1000:]
    return 'it has not begun'
