# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Timings that can be compared: candidates take turns in one run, and the conditions stand beside the figures."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    'torch',
    'mmengine',
    'onedl-mmengine',
    'mmcv',
    'onedl-mmcv',
    'mmdet',
    'onedl-mmdetection',
    'mmsegmentation',
    'onedl-mmsegmentation',
    'torchvision',
    'triton',
    'deformops',
)


def now(device: str) -> float:
    """Seconds on the clock once ``device`` has finished all work that it was given."""
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def race(
    candidates: Mapping[str, Callable[[], Any]], repetitions: int, device: str = 'cpu', warm_up: int = 2
) -> dict[str, list[float]]:
    """Milliseconds of every call; candidates take turns, so that whatever else the machine does hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repetition in range(warm_up + repetitions):
        for name, function in candidates.items():
            start = now(device)
            function()
            if repetition >= warm_up:
                times[name].append((now(device) - start) * 1e3)
    return times


def summary(times: Sequence[float]) -> dict[str, float]:
    """Fastest, median and quartiles."""
    quartiles = torch.tensor(sorted(times)).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return {'fastest': min(times), **dict(zip(('lower_quartile', 'median', 'upper_quartile'), quartiles, strict=True))}


def conditions(device: str) -> dict[str, Any]:
    """Hardware, versions and settings that a timing depends on, and how busy the machine was."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        'device': device,
        'hardware': torch.cuda.get_device_name() if device == 'cuda' else _cpu_name(),
        'threads': torch.get_num_threads(),
        'versions': versions,
        'python': platform.python_version(),
        'cudnn_tf32': torch.backends.cudnn.allow_tf32,
        'wait_policy': os.environ.get('OMP_WAIT_POLICY', 'default'),
        'load_average_before': os.getloadavg(),
    }


def _cpu_name() -> str:
    lines = Path('/proc/cpuinfo').read_text().splitlines() if Path('/proc/cpuinfo').exists() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor()
