# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""``ExactResumeHook``: a resumed run computes, bit for bit, what it would have computed without the break."""

from __future__ import annotations

import logging
from typing import Any, Dict, Optional

from mmengine.hooks import Hook
from mmengine.logging import print_log
from torch.utils.data import DataLoader, IterableDataset

from .randomness import PlacedSampler, SeededFetch, seed_step

META_KEY = 'exact_resume'


class ExactResumeHook(Hook):
    """Makes every random number of a training a function of seed, rank and step, so that resuming needs no state.

    MMEngine saves weights, optimizer and schedulers, but no random state, and its data workers are seeded only when
    they start. Here each step begins with random numbers of its own, and so does each sample of the data, wherever it
    is read: the number of workers makes no difference either. Validation takes nothing from the training.

    ``DeformUpgradeHook`` brings it along; name it in ``custom_hooks`` for trainings without an upgrade. What a
    checkpoint does not hold is still lost in a break: see ``docs/training.md``.
    """

    priority = 'HIGH'  # after DeformUpgradeHook, before whatever draws

    def __init__(self) -> None:
        self._saved: Optional[Dict[str, Any]] = None
        self._sampler: Optional[PlacedSampler] = None

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Compare the resumed run with the one that wrote the checkpoint."""
        if not runner._resume:
            return
        self._saved = (checkpoint.get('meta') or {}).get(META_KEY)
        if self._saved is None:
            _warn(
                'the checkpoint was written without ExactResumeHook: training goes on, but not bit for bit as it '
                'would have without the break'
            )

    def before_train(self, runner) -> None:
        """Give the training data their random numbers."""
        loader = runner.train_dataloader
        batches: Any = getattr(loader, 'batch_sampler', None)
        if isinstance(loader.dataset, IterableDataset) or not hasattr(batches, 'sampler'):
            _warn('the training data are not drawn by a sampler: what they draw at random is not repeated by a resume')
            return
        if not isinstance(batches.sampler, PlacedSampler):
            self._place_samples(runner, loader)
        if self._saved is not None and runner.rank == 0:
            self._compare(runner)

    def before_train_epoch(self, runner) -> None:
        """Count samples from the beginning of the epoch; iterations are one long epoch."""
        if self._sampler is not None:
            self._sampler.start(runner.seed, runner.rank, runner.epoch)
            _draw_again(runner.train_loop)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Give the step its random numbers."""
        seed_step(runner.seed, runner.rank, runner.iter)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Record what a resumed run has to have in common with this one."""
        checkpoint['meta'][META_KEY] = self._identity(runner)

    def _place_samples(self, runner, loader: DataLoader) -> None:
        inner = loader.batch_sampler.sampler  # type: ignore[union-attr]
        if self._saved is not None and hasattr(inner, 'seed'):
            inner.seed = self._saved['sampler_seed']  # where the config names no seed, every process draws one
        self._sampler = PlacedSampler(inner)
        loader.batch_sampler.sampler = self._sampler  # type: ignore[union-attr]
        loader.dataset.__getitems__ = SeededFetch(loader.dataset)  # type: ignore[attr-defined]

    def _identity(self, runner) -> Dict[str, Any]:
        sampler = self._sampler
        return {
            'seed': runner.seed,
            'sampler_seed': getattr(sampler.sampler, 'seed', None) if sampler is not None else None,
            'world_size': runner.world_size,
            'batch_size': getattr(runner.train_dataloader.batch_sampler, 'batch_size', None),
        }

    def _compare(self, runner) -> None:
        now = self._identity(runner)
        changed = [
            f'{key} {self._saved.get(key)} -> {now[key]}'  # type: ignore[union-attr]
            for key in now
            if self._saved.get(key) != now[key]
        ]  # type: ignore[union-attr]
        if changed:
            _warn(
                f'resumed with another {", ".join(changed)}: training goes on, but not bit for bit as it would have '
                'without the break'
            )


def _draw_again(loop: Any) -> None:
    # MMEngine up to 0.10.7 opens the data as soon as the loop is built: workers have a copy of the data set, and read.
    data: Any = getattr(loop, 'dataloader_iterator', None)
    if getattr(data, '_iterator', None) is None:
        return
    sampler = loop.dataloader.batch_sampler.sampler.sampler
    if hasattr(sampler, '_indices_of_rank'):
        sampler.indices = sampler._indices_of_rank()
    loop.dataloader._iterator = None  # no persistent worker stays
    loop.dataloader_iterator = type(data)(loop.dataloader)


def _warn(text: str) -> None:
    print_log(f'ExactResumeHook: {text}.', logger='current', level=logging.WARNING)
