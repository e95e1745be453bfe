# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""``RunGuardHook``: nothing of a run is lost in a break, or to weights that are not finite."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import IterableDataset

from ...errors import ConfigError
from ...readers import remove_leftovers
from ..loading import SCHEME
from ..random_state import kept_random_state
from .checkpoints import BACKEND, find_resumable
from .finite import FiniteCheck
from .lock import hold, release
from .randomness import PlacedBatches, SeededFetch, seed_step

META_KEY = 'exact_resume'


class RunGuardHook(Hook):
    """Makes a training run safe, whether it upgrades a network or not.

    - One run a folder: the main process holds the work directory while it trains.
    - Whole checkpoints: a file appears under its name when all of it is on the disk, the one that it replaces goes
      afterwards, and a resume takes the newest whole one (with ``FlexibleRunner``, MMEngine offers no way to choose
      how checkpoints are written).
    - A validation that a break cut off is made up for, since ``save_best`` would know nothing of it.

    Args:
        exact_resume: give each step, and each sample of the training data, random numbers that depend on seed, rank
            and place in the training alone. A resumed run then computes, bit for bit, what it would have computed
            without the break, with any number of data workers. It changes which random numbers a run draws.
        finite_interval: iterations between two looks at losses and weights; they are looked at before validations and
            checkpoints as well. None never looks.

    Raises (from the runner's calls):
        ConfigError: another run has the work directory.
        CheckpointError: there is something to resume from in the work directory, and nothing of it is whole.
        TrainingError: weights, or all losses of an interval, are not finite, or a checkpoint could not be written.
            The checkpoints written before stay.
    """

    priority = 'HIGHEST'  # before whatever draws random numbers, reads a checkpoint or saves one

    def __init__(self, exact_resume: bool = True, finite_interval: int | None = 50):
        if finite_interval is not None and finite_interval < 1:
            raise ConfigError(f'RunGuardHook: finite_interval is {finite_interval}; expected 1 or more, or None')
        self.exact_resume = exact_resume
        self._finite = FiniteCheck(finite_interval) if finite_interval is not None else None
        self._saved: dict[str, Any] | None = None
        self._batches: PlacedBatches | None = None
        self._holds = self._cleared_up = False

    def before_run(self, runner) -> None:
        """Have checkpoints written whole, and a whole one resumed from."""
        for hook in _checkpoint_hooks(runner):
            local = '://' not in str(hook.out_dir or '')
            if isinstance(runner, Runner) and local and not hook.backend_args and not hook.file_client_args:
                hook.backend_args = dict(backend=BACKEND)
        if runner._resume and runner._load_from is None and (found := find_resumable(runner.work_dir)):
            runner._load_from = found if '://' in found else SCHEME + found

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Remember what the resumed run had, to compare."""
        if runner._resume and self.exact_resume:
            self._saved = (checkpoint.get('meta') or {}).get(META_KEY)
            if self._saved is None:
                _warn('the checkpoint was written without RunGuardHook: training goes on, but not bit for bit')

    def before_train(self, runner) -> None:
        """Take the folder, and give the training data their random numbers."""
        self._take_work_dir(runner)
        if self._finite is not None:
            self._finite.start(runner)
        if self.exact_resume and self._batches is None:
            self._place_samples(runner)

    def before_train_epoch(self, runner) -> None:
        """Count samples from the beginning of the epoch; iterations are one long epoch."""
        self._clear_up(runner)  # not in before_train, which CheckpointHook has to have had
        if self._batches is not None:
            self._batches.start(runner.seed, runner.rank, runner.epoch)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Give the step its random numbers."""
        if self.exact_resume:
            seed_step(runner.seed, runner.rank, runner.iter)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """Count the losses that are not finite, and look at them now and then."""
        if self._finite is not None:
            self._finite.count(runner, (outputs or {}).get('loss'))

    def before_val(self, runner) -> None:
        """Score no broken weights."""
        if self._finite is not None:
            self._finite.look(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Refuse weights that are not finite; record what a resumed run has to have in common with this one."""
        if self._finite is not None:
            self._finite.refuse(runner, checkpoint['state_dict'].items())
        if self.exact_resume:
            checkpoint['meta'][META_KEY] = self._identity(runner)

    def after_train(self, runner) -> None:
        """Where a run was killed in its last validation, no epoch is left to begin."""
        self._clear_up(runner)

    def after_run(self, runner) -> None:
        """Give the folder back, unless somebody else in this process took it."""
        if self._holds:
            release(runner.work_dir)

    def _take_work_dir(self, runner) -> None:
        # Not in before_run, which tests have as well: those may look at a run that is still going on.
        refused: list[str | None] = [None]
        if is_main_process():
            try:
                self._holds = hold(runner.work_dir)
            except ConfigError as error:
                refused = [str(error)]
        broadcast_object_list(refused)  # or the other processes would wait for the main one
        if refused[0] is not None:
            raise ConfigError(refused[0])

    def _clear_up(self, runner) -> None:
        """Once: remove what a killed run left half-written, and validate if that was due when it was killed."""
        if self._cleared_up:
            return
        self._cleared_up = True
        if is_main_process():
            for hook in _checkpoint_hooks(runner):
                remove_leftovers(str(hook.out_dir), '*.pth')
        if runner._resume and any(hook.save_best for hook in _checkpoint_hooks(runner)) and _validation_was_due(runner):
            runner.logger.info('Validating where the resumed run stood, since the break may have cut that off.')
            with kept_random_state():
                runner.val_loop.run()

    def _place_samples(self, runner) -> None:
        _open_data_anew(runner)
        loader = runner.train_dataloader
        batches: Any = getattr(loader, 'batch_sampler', None)
        if isinstance(loader.dataset, IterableDataset) or batches is None:
            _warn('no sampler draws the training data: what they draw at random is not repeated by a resume')
            return
        sampler: Any = getattr(batches, 'sampler', None)
        if self._saved is not None and hasattr(sampler, 'seed'):
            sampler.seed = self._saved['sampler_seed']  # where the config names no seed, every process draws one
        self._batches = vars(loader)['batch_sampler'] = PlacedBatches(batches)  # DataLoader refuses an assignment
        loader.dataset.__getitems__ = SeededFetch(loader.dataset)
        if self._saved is not None and runner.rank == 0:
            self._compare(runner, self._saved)

    def _identity(self, runner) -> dict[str, Any]:
        batches = getattr(runner.train_dataloader, 'batch_sampler', None)
        return {
            'seed': runner.seed,
            'sampler_seed': getattr(getattr(batches, 'sampler', None), 'seed', None),
            'world_size': runner.world_size,
            'batch_size': getattr(batches, 'batch_size', None),
        }

    def _compare(self, runner, saved: dict[str, Any]) -> None:
        now = self._identity(runner)
        changed = [f'{key} {saved.get(key)} -> {value}' for key, value in now.items() if saved.get(key) != value]
        if changed:
            _warn(f'resumed with another {", ".join(changed)}: training goes on, but not bit for bit')


def _checkpoint_hooks(runner) -> list[CheckpointHook]:
    return [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]


def _open_data_anew(runner) -> None:
    """MMEngine up to 0.10.7 opens the data of an iteration-based loop at once: workers have read, samplers moved on."""
    loop: Any = runner.train_loop
    data: Any = getattr(loop, 'dataloader_iterator', None)
    if getattr(data, '_iterator', None) is not None:
        settings = {**runner.cfg.train_dataloader, 'dataset': loop.dataloader.dataset}
        loop.dataloader = runner.build_dataloader(settings, seed=runner.seed)
        loop.dataloader_iterator = type(data)(loop.dataloader)


def _validation_was_due(runner) -> bool:
    """Whether the loop validates at the place where it stands; as MMEngine's loops decide it."""
    loop: Any = runner.train_loop
    if runner.val_loop is None or not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return False
    loop._decide_current_val_interval()
    here, end = (loop.epoch, loop.max_epochs) if isinstance(loop, EpochBasedTrainLoop) else (loop.iter, loop.max_iters)
    return here > 0 and here >= loop.val_begin and (here % loop.val_interval == 0 or here == end)


def _warn(text: str) -> None:
    print_log(f'RunGuardHook: {text}.', logger='current', level=logging.WARNING)
