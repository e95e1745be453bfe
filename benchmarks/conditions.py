# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What a timing depends on, to be printed beside it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
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
