# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Many runs of experiments at a time on one machine, each in a process forked from one that has imported everything.

Importing the frameworks takes longer than a short run. On one GPU a few at a time are enough (docs/recipes.md).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import runpy
import signal
import sys
import time
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from mmdeform_upgrade.errors import UpgradeError

from ..tool_runs import tool_path
from .recipes import read_recipes, with_recipe
from .runs import ARMS, FINE_TUNES, Experiment, folder, read_result, run_arm

_PRELOADED = (
    'mmengine.runner',
    'mmdet.datasets',
    'mmdet.engine',
    'mmdet.evaluation',
    'mmdet.models',
    'mmseg.datasets',
    'mmseg.engine',
    'mmseg.evaluation',
    'mmseg.models',
)


@dataclass(frozen=True)
class Job:
    """One run, and the run that it starts from."""

    experiment: Experiment
    seed: int
    arm: str

    @property
    def place(self) -> Path:
        """Its folder, which names it."""
        return folder(self.experiment, self.seed, self.arm)

    @property
    def waits_for(self) -> Optional[Path]:
        """The folder of the run that it starts from."""
        if self.arm in FINE_TUNES:
            return folder(self.experiment, self.seed, 'baseline')
        return None


def jobs_of(
    experiments: Sequence[Experiment], seeds: Sequence[int], arms: Sequence[str] = ARMS, repeats: int = 1
) -> List[Job]:
    """The runs of each experiment, repeat by repeat, seed by seed; one that several share is there once."""
    found: Dict[Path, Job] = {}
    for experiment, repeat, seed in product(experiments, range(repeats), seeds):
        for arm in (arm for arm in ARMS if arm in arms):
            job = Job(replace(experiment, repeat=repeat), seed, arm)
            found.setdefault(job.place, job)
    return list(found.values())


def read_plan(path: str) -> List[Job]:
    """The jobs of a Python file: ``plan``, a list of settings of :class:`Experiment`, with ``seeds`` and ``arms``.

    ``recipes='FILE.py'`` in an entry stands for the upgrades (or ``arms``) of every recipe of that file, or of those in
    ``only``; ``repeats=N`` for N fine-tunes of each baseline.

    Raises:
        UpgradeError: there is no plan, or an entry says something unknown.
    """
    from mmengine.config import Config

    plan = Config.fromfile(path).to_dict().get('plan')
    if not isinstance(plan, list) or not plan:
        raise UpgradeError(f'{path}: expected plan = [dict(config=..., work_dir=..., metric=...), ...]')
    jobs: Dict[Path, Job] = {}
    for entry in plan:
        entry = dict(entry)
        recipes, only = entry.pop('recipes', None), entry.pop('only', ())
        seeds, repeats = entry.pop('seeds', [0, 1, 2]), entry.pop('repeats', 1)
        arms = entry.pop('arms', ARMS if recipes is None else ('upgraded',))
        try:
            experiment = Experiment(**entry)
        except TypeError as error:
            raise UpgradeError(
                f'{path}: {error}; an entry takes seeds, arms, recipes, only, repeats and what an '
                'Experiment takes: ' + ', '.join(Experiment.__dataclass_fields__)
            ) from error
        experiments = [experiment]
        if recipes is not None:
            found = read_recipes(recipes, only)
            experiments = [with_recipe(experiment, name, found[name]) for name in only or found]
        for job in jobs_of(experiments, seeds, arms, repeats):
            jobs.setdefault(job.place, job)
    return list(jobs.values())


def run_side_by_side(jobs: Sequence[Job], at_once: int, seconds: float = float('inf')) -> Dict[Path, str]:
    """Run jobs, the first ones first, each as soon as what it starts from has a result.

    Args:
        jobs: what to run. Each leaves what :func:`run_arm` leaves, and its messages in ``FOLDER.log``.
        at_once: how many at a time.
        seconds: when to kill what still runs and to start no more. What was killed can be resumed.

    Returns:
        What became of each job, by its folder: ``'done'``, ``'failed'``, ``'cut'`` or ``'not run'``.

    Raises:
        UpgradeError: CUDA is already in use in this process, which forked ones could not use then.
    """
    _preload()
    _check_fork()
    deadline = time.monotonic() + seconds
    ended: Dict[Path, str] = {job.place: 'done' for job in jobs if _finished(job)}
    waiting = [job for job in jobs if job.place not in ended]
    running: Dict[int, Job] = {}
    try:
        while waiting or running:
            while len(running) < at_once and (job := _next(waiting, ended)):
                waiting.remove(job)
                running[_start(job)] = job
                print(f'started {job.place}', flush=True)
            if not running or time.monotonic() > deadline:
                break  # what is left waits for something that failed, or the time is up
            time.sleep(0.05)
            for pid, status in _ended(running):
                job = running.pop(pid)
                ended[job.place] = 'done' if status == 0 else 'failed'
                print(f'{ended[job.place]} {job.place}', flush=True)
    finally:  # also of an interrupt, which reaches this process alone
        for pid, job in running.items():
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            ended[job.place] = 'cut'
    return {job.place: ended.get(job.place, 'not run') for job in jobs}


def _finished(job: Job) -> bool:
    return read_result(job.experiment, job.seed, job.arm) is not None


def _next(waiting: Sequence[Job], ended: Dict[Path, str]) -> Optional[Job]:
    for job in waiting:
        before = job.waits_for
        if before is None or ended.get(before) == 'done' or (before / 'result.json').is_file():
            return job
    return None


def _ended(running: Dict[int, Job]) -> List[Tuple[int, int]]:
    states = [(pid, os.waitpid(pid, os.WNOHANG)) for pid in running]
    return [(pid, status) for pid, (found, status) in states if found]


def _start(job: Job) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # pools end their workers by it, which must not see our handler
        try:
            job.place.parent.mkdir(parents=True, exist_ok=True)
            with _output_to(job.place.with_name(job.place.name + '.log')):
                run_arm(job.experiment, job.seed, job.arm, run=_run_forked)
            status = 0
        except BaseException:
            with open(job.place.with_name(job.place.name + '.log'), 'a', encoding='utf8') as file:
                traceback.print_exc(file=file)
        finally:
            os._exit(status)
    with suppress(ProcessLookupError):  # a group of its own, to be killed with what it starts
        os.setpgid(pid, pid)
    return pid


def _run_forked(name: str, *args: object, title: str, log: Path, **_: Any) -> None:
    """What :func:`run_tool` does, without a progress bar and without starting Python anew."""
    pid = os.fork()
    if pid == 0:
        status: object = 1
        try:
            with _output_to(log):
                sys.argv = [str(tool_path(name)), *map(str, args)]
                runpy.run_path(sys.argv[0], run_name='__main__')
                status = 0
        except SystemExit as leaving:
            status = leaving.code
        except BaseException:
            with open(log, 'a', encoding='utf8') as file:
                traceback.print_exc(file=file)
        finally:
            os._exit(status if isinstance(status, int) else int(status is not None))
    status = os.waitpid(pid, 0)[1]
    if status:
        raise UpgradeError(f'{title}: {name} ended with status {os.waitstatus_to_exitcode(status)}, see {log}')


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    with open(path, 'w', encoding='utf8', buffering=1) as file:
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            os.dup2(file.fileno(), number)
        yield
        sys.stdout.flush()
        sys.stderr.flush()


def _preload() -> None:
    """Import what runs import, as far as it is installed."""
    for name in _PRELOADED:
        if importlib.util.find_spec(name.partition('.')[0]) is not None:
            importlib.import_module(name)


def _check_fork() -> None:
    import torch

    if torch.cuda.is_initialized():
        raise UpgradeError(
            'CUDA is in use in this process already, and the processes forked from it could not use it; '
            'call run_side_by_side before anything runs on the GPU'
        )
