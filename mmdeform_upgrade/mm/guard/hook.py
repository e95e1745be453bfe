# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""``RunGuardHook``: nothing of a run is lost in a break, or to weights that are not finite."""

from __future__ import annotations

import logging
from typing import IO, Any

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from ...checkpoint import clean_state_dict, not_finite, refuse_not_finite
from ...errors import ConfigError, naming
from ...files import remove_leftovers
from ..loading import SCHEME, refuse_to_overwrite
from ..run import bare_network, checkpoint_hooks, kept_random_state, named_tensors, stop_for_weights
from .checkpoints import BACKEND, find_resumable
from .lock import hold
from .randomness import PlacedBatches, open_data_anew, place_samples, seed_step

META_KEY = 'exact_resume'


class RunGuardHook(Hook):
    """Makes a training run safe, whether it upgrades a network or not.

    - One run a folder: the main process holds the work directory while it trains.
    - Whole checkpoints: a file appears under its name when all of it is on the disk, the one that it replaces goes
      afterwards, and a resume takes the newest whole one (``FlexibleRunner`` offers no way to choose how checkpoints
      are written).
    - A validation that a break cut off is made up for, since ``save_best`` would know nothing of it.

    Args:
        exact_resume: give each step, and each sample of the training data, random numbers that depend on seed, rank
            and place in the training alone. A resumed run then computes, bit for bit, what it would have computed
            without the break, with any number of data workers. It changes which random numbers a run draws.
        finite_interval: iterations between two looks at the weights, which are looked at before validations and
            checkpoints as well; None never looks.

    Raises (from the runner's calls):
        ConfigError: another run has the work directory, or checkpoints would be written over the one that was loaded.
        CheckpointError: there is something to resume from in the work directory, and nothing of it is whole.
        TrainingError: weights are not finite, or a checkpoint could not be written. Those written before stay.
    """

    priority = 'HIGHEST'  # before whatever draws random numbers, reads a checkpoint or saves one

    def __init__(self, exact_resume: bool = True, finite_interval: int | None = 50):
        if finite_interval is not None and finite_interval < 1:
            raise ConfigError(f'RunGuardHook: finite_interval is {finite_interval}; expected 1 or more, or None')
        self.exact_resume, self.finite_interval = exact_resume, finite_interval
        self._lock: IO[str] | None = None
        self._begun = False
        self._saved: dict[str, Any] | None = None
        self._batches: PlacedBatches | None = None
        self._never_finite: set[str] = set()

    def before_run(self, runner) -> None:
        """Have checkpoints written whole, and a whole one resumed from."""
        for hook in checkpoint_hooks(runner):
            elsewhere = hook.backend_args or hook.file_client_args or '://' in str(hook.out_dir or '')
            if isinstance(runner, Runner) and not elsewhere:
                hook.backend_args = dict(backend=BACKEND)
        if runner._resume and runner._load_from is None and (found := find_resumable(runner.work_dir)):
            runner._load_from = found if '://' in found else SCHEME + found

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Train from no broken weights; remember what the resumed run had, to compare."""
        if self.finite_interval is not None:
            network = dict(named_tensors(bare_network(runner)))
            with naming(runner._load_from):
                refuse_not_finite(clean_state_dict(checkpoint.get('state_dict') or {}), network)
        if runner._resume and self.exact_resume:
            self._saved = (checkpoint.get('meta') or {}).get(META_KEY)
            if self._saved is None:
                _warn('the checkpoint was written without RunGuardHook: training goes on, but not bit for bit')

    def before_train(self, runner) -> None:
        """Take the folder, and give the training data their random numbers."""
        if runner._load_from and not runner._resume:
            refuse_to_overwrite(runner._load_from, runner.work_dir, runner.cfg, checkpoint_hooks(runner))
        self._take_work_dir(runner)
        # Some networks hold an infinity from the start, as the mask of an attention.
        self._never_finite = set(not_finite(named_tensors(bare_network(runner))))
        if self.exact_resume and self._batches is None:
            open_data_anew(runner)
            self._batches = place_samples(runner.train_dataloader, (self._saved or {}).get('sampler_seed'))
            if self._batches is None:
                _warn('no sampler draws the training data: what they draw at random is not repeated by a resume')
            elif self._saved is not None:
                for augment, size in zip(_resizing(runner), self._saved.get('input_sizes', ()), strict=False):
                    augment._input_size = size and tuple(size)
                saved, now = self._saved, _identity(runner)
                if changed := [f'{k} {saved.get(k)} -> {v}' for k, v in now.items() if saved.get(k) != v]:
                    _warn(f'resumed with another {", ".join(changed)}: training goes on, but not bit for bit')

    def before_train_epoch(self, runner) -> None:
        """Count samples from the beginning of the epoch; iterations are one long epoch."""
        self._begin(runner)  # not in before_train, which CheckpointHook has to have had
        if self._batches is not None:
            self._batches.start(runner.seed, runner.rank, runner.epoch)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Give the step its random numbers."""
        if self.exact_resume:
            seed_step(runner.seed, runner.rank, runner.iter)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """Look at the weights, and at the loss, which mixed precision may bring to overflow and leave out."""
        if self.finite_interval is not None and self.every_n_train_iters(runner, self.finite_interval):
            self._look(runner, named_tensors(bare_network(runner)), runner.iter + 1)
            loss = (outputs or {}).get('loss')
            if isinstance(loss, torch.Tensor) and not torch.isfinite(loss).all():
                _warn(f'the loss of iteration {runner.iter + 1} is not finite, and the weights still are')

    def before_val(self, runner) -> None:
        """Score no broken weights."""
        self._look(runner, named_tensors(bare_network(runner)), runner.iter)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Save no broken weights; record what a resumed run has to have in common with this one."""
        done = checkpoint['meta'].get('iter', runner.iter)
        self._look(runner, checkpoint['state_dict'].items(), done)
        if self.exact_resume:
            sizes = [augment._input_size for augment in _resizing(runner)]
            checkpoint['meta'][META_KEY] = {**_identity(runner), 'input_sizes': sizes}

    def after_train(self, runner) -> None:
        """Where a run was killed in its last validation, no epoch is left to begin."""
        self._begin(runner)

    def after_run(self, runner) -> None:
        """Give the folder back."""
        if self._lock is not None:
            self._lock.close()

    def _take_work_dir(self, runner) -> None:
        # Not in before_run, which tests have as well: those may look at a run that is still going on.
        refused: list[str | None] = [None]
        if is_main_process():
            try:
                self._lock = hold(runner.work_dir)
            except ConfigError as error:
                refused = [str(error)]
        broadcast_object_list(refused)  # or the other processes would wait for the main one
        if refused[0] is not None:
            raise ConfigError(refused[0])

    def _look(self, runner, tensors: Any, iteration: int) -> None:
        if self.finite_interval is not None:
            broken = [name for name in not_finite(tensors) if name not in self._never_finite]
            if broken:
                stop_for_weights(runner, iteration, broken)

    def _begin(self, runner) -> None:
        """Once: remove what a killed run left half-written, and validate if that was due when it was killed."""
        if self._begun:
            return
        self._begun = True
        if is_main_process():
            for hook in checkpoint_hooks(runner):
                remove_leftovers(str(hook.out_dir), '*.pth')
        if runner._resume and any(hook.save_best for hook in checkpoint_hooks(runner)) and _validation_was_due(runner):
            runner.logger.info('Validating where the resumed run stood, since the break may have cut that off.')
            with kept_random_state():
                runner.val_loop.run()


def _validation_was_due(runner) -> bool:
    """Whether the loop validates at the place where it stands; as MMEngine's loops decide it."""
    loop: Any = runner.train_loop
    if runner.val_loop is None or not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return False
    loop._decide_current_val_interval()
    here, end = (loop.epoch, loop.max_epochs) if isinstance(loop, EpochBasedTrainLoop) else (loop.iter, loop.max_iters)
    return here > 0 and here >= loop.val_begin and (here % loop.val_interval == 0 or here == end)


def _identity(runner) -> dict[str, Any]:
    batches = getattr(runner.train_dataloader, 'batch_sampler', None)
    return {
        'seed': runner.seed,
        'sampler_seed': getattr(getattr(batches, 'sampler', None), 'seed', None),
        'world_size': runner.world_size,
        'batch_size': getattr(batches, 'batch_size', None),
    }


def _resizing(runner) -> list[Any]:
    # mmdet's BatchSyncRandomResize (YOLOX) draws a size every few steps, and keeps it in no state dict.
    augments = getattr(getattr(bare_network(runner), 'data_preprocessor', None), 'batch_augments', None) or ()
    return [augment for augment in augments if hasattr(augment, '_input_size')]


def _warn(text: str) -> None:
    print_log(f'RunGuardHook: {text}.', logger='current', level=logging.WARNING)
