# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Random numbers as a function of where a training stands, so that nothing about them has to be saved."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..run import kept_random_state

_STEP, _SAMPLE, _BATCH = range(3)  # two uses of the same place never share a seed


def seed_step(seed: int, rank: int, iteration: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices) for one training step."""
    torch.manual_seed(_seed_cpu(_STEP, seed, rank, iteration))


class Draw(NamedTuple):
    """An index that a sampler drew, of whatever kind, with the place of that draw in the training."""

    index: Any
    place: tuple[int, ...]


class PlacedBatches:
    """A batch sampler whose indices know the how-manieth they are since ``start``, also in a data loader's workers.

    It lives in the main process, which counts. Everything else is passed on to ``batches``.
    """

    def __init__(self, batches: Any):
        self.batches = batches
        self.place: tuple[int, ...] = ()
        self.drawn = 0
        sampler: Any = getattr(batches, 'sampler', None)
        if hasattr(sampler, 'skip'):  # MMEngine calls it when it resumes by iterations
            self._skip_inner, sampler.skip = sampler.skip, self._skip

    def start(self, *place: int) -> None:
        """Count from zero; ``place`` goes before the count."""
        self.place, self.drawn = place, 0

    def __iter__(self) -> Iterator[list[Draw]]:
        batches = iter(self.batches)
        while True:
            with kept_random_state():  # some samplers draw from the process's random numbers
                _seed_cpu(_BATCH, *self.place, self.drawn)
                batch = next(batches, None)
            if batch is None:
                return
            first, self.drawn = self.drawn, self.drawn + len(batch)
            yield [Draw(index, (*self.place, first + number)) for number, index in enumerate(batch)]

    def _skip(self, num_samples: int) -> None:
        self._skip_inner(num_samples)
        self.drawn = num_samples

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name == 'batches':  # while unpickling
            raise AttributeError(name)
        return getattr(self.batches, name)


def fetch_seeded(dataset: Any, draws: Iterable[Any]) -> list[Any]:
    """Read a batch, each sample with random numbers of its own: the same ones in any worker or none."""
    with kept_random_state() if get_worker_info() is None else nullcontext():
        return [_sample(dataset, draw) for draw in draws]


def _sample(dataset: Any, draw: Any) -> Any:
    if not isinstance(draw, Draw):
        return dataset[draw]
    _seed_cpu(_SAMPLE, *draw.place)
    return dataset[draw.index]


def place_samples(loader: Any, sampler_seed: int | None = None) -> PlacedBatches | None:
    """Have a data loader give each sample random numbers of its own; None where no sampler draws its data.

    ``sampler_seed`` is that of the run that is resumed: where a config names no seed, every process draws one.
    """
    batches: Any = getattr(loader, 'batch_sampler', None)
    if batches is None or isinstance(loader.dataset, IterableDataset):
        return None
    sampler: Any = getattr(batches, 'sampler', None)
    if sampler_seed is not None and hasattr(sampler, 'seed'):
        sampler.seed = sampler_seed
    placed = vars(loader)['batch_sampler'] = PlacedBatches(batches)  # DataLoader refuses an assignment
    loader.dataset.__getitems__ = partial(fetch_seeded, loader.dataset)  # which PyTorch's fetcher calls
    return placed


def open_data_anew(runner) -> None:
    """MMEngine up to 0.10.7 opens the data of an iteration-based loop at once: workers have read, samplers moved on."""
    loop: Any = runner.train_loop
    data: Any = getattr(loop, 'dataloader_iterator', None)
    if getattr(data, '_iterator', None) is not None:
        settings = {**runner.cfg.train_dataloader, 'dataset': loop.dataloader.dataset}
        loop.dataloader = runner.build_dataloader(settings, seed=runner.seed)
        loop.dataloader_iterator = type(data)(loop.dataloader)


def _seed_cpu(*place: int) -> int:
    """Seed Python, NumPy and PyTorch on the CPU by 63 bits that depend on every number of ``place``; returns these."""
    word = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> np.uint64(1))
    random.seed(word)
    np.random.seed(word & 0xFFFFFFFF)
    torch.default_generator.manual_seed(word)  # torch.manual_seed would queue a call for CUDA, too
    return word
