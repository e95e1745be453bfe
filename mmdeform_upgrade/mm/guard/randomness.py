# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Random numbers as a function of where a training stands, so that nothing about them has to be saved."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import Any, Iterable, Iterator, List, Tuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

_STEP, _SAMPLE = 0, 1  # two uses of the same place never share a seed


def seed_step(seed: int, rank: int, iteration: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices) for one training step.

    Args:
        seed: the run's seed.
        rank: of this process.
        iteration: steps taken since the training began.
    """
    _seed_python_and_numpy(word := _word(_STEP, seed, rank, iteration))
    torch.manual_seed(word)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Whatever is drawn inside does not move the random state outside."""
    devices: List[int] = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        yield
    random.setstate(python)
    np.random.set_state(numpy)


class Draw(int):
    """An index that a sampler drew, with the place of that draw in the training."""

    place: Tuple[int, ...] = ()

    @classmethod
    def at(cls, index: int, place: Tuple[int, ...]) -> Draw:
        draw = cls(index)
        draw.place = place
        return draw


class PlacedSampler:
    """A sampler whose indices know the how-manieth they are since ``start``, also in the workers of a data loader.

    A sampler lives in the main process as long as the run, which workers do not.

    Args:
        sampler: the sampler to draw from; everything else is passed on to it.
    """

    def __init__(self, sampler: Any):
        self.sampler = sampler
        self.place: Tuple[int, ...] = ()
        self.drawn = 0
        if hasattr(sampler, 'skip'):  # MMEngine calls it when it resumes by iterations, on either of the two
            self._skip_inner = sampler.skip
            self.skip = sampler.skip = self._skip

    def start(self, *place: int) -> None:
        """Count from zero; ``place`` goes before the count."""
        self.place, self.drawn = place, 0

    def __iter__(self) -> Iterator[Draw]:
        for index in self.sampler:
            draw = Draw.at(index, (*self.place, self.drawn))
            self.drawn += 1
            yield draw

    def _skip(self, num_samples: int) -> None:
        self._skip_inner(num_samples)
        self.drawn = num_samples

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name == 'sampler':  # while unpickling
            raise AttributeError(name)
        return getattr(self.sampler, name)


class SeededFetch:
    """Reads the samples of a batch, each with random numbers of its own: the same ones in any worker or none.

    PyTorch's fetcher calls it where a data set has it as ``__getitems__``.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __call__(self, indices: Iterable[int]) -> List[Any]:
        if get_worker_info() is not None:
            return [self._sample(index) for index in indices]
        with kept_random_state():
            return [self._sample(index) for index in indices]

    def _sample(self, index: int) -> Any:
        place = getattr(index, 'place', ())
        if place:
            _seed_python_and_numpy(word := _word(_SAMPLE, *place))
            torch.default_generator.manual_seed(word)  # torch.manual_seed would queue a call for CUDA, too
        return self.dataset[int(index)]


def _seed_python_and_numpy(word: int) -> None:
    random.seed(word)
    np.random.seed(word & 0xFFFFFFFF)


def _word(*place: int) -> int:
    """63 bits that depend on every number of ``place``."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> np.uint64(1))
