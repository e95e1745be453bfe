# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Autocast, as for any convolution: values go to its dtype, coordinates do not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast asks for, or None where it is off."""
    if device_type == 'meta':  # has no autocast
        return None
    if hasattr(torch, 'get_autocast_dtype'):  # torch >= 2.4
        return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    if device_type == 'cuda':
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


def autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Values in the dtype that a plain convolution would get them in."""
    dtype = autocast_dtype(input.device.type)
    if dtype is None or input.dtype == torch.float64:
        return input, weight, bias
    return input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def no_autocast(device_type: str) -> AbstractContextManager:
    """Within it, operations keep the dtypes of their operands."""
    return nullcontext() if autocast_dtype(device_type) is None else torch.autocast(device_type, enabled=False)
