# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Timings that can be compared: candidates take turns in one run."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, Mapping, Sequence

import torch


def now(device: str) -> float:
    """Seconds on the clock once ``device`` has finished all work that it was given."""
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def race(
    candidates: Mapping[str, Callable[[], Any]], repetitions: int, device: str = 'cpu', warm_up: int = 2
) -> Dict[str, List[float]]:
    """Milliseconds of every call; candidates take turns, so that whatever else the machine does hits all of them."""
    times: Dict[str, List[float]] = {name: [] for name in candidates}
    for repetition in range(warm_up + repetitions):
        for name, function in candidates.items():
            start = now(device)
            function()
            if repetition >= warm_up:
                times[name].append((now(device) - start) * 1e3)
    return times


def summary(times: Sequence[float]) -> Dict[str, float]:
    """Fastest, median and quartiles."""
    quartiles = torch.tensor(sorted(times)).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return {'fastest': min(times), **dict(zip(('lower_quartile', 'median', 'upper_quartile'), quartiles, strict=True))}
