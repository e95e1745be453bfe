# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Weights that are not finite, and the layers that they are in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...errors import TrainingError, listed
from ...layers import upgraded_layers
from ..messages import TAME_OFFSETS, what_is_left
from ..network import bare_network


def not_finite(tensors: Iterable[tuple[str, Any]]) -> list[str]:
    """Names of floating-point tensors with anything but finite numbers; one wait for the device."""
    floats = [(name, value) for name, value in tensors if isinstance(value, Tensor) and value.is_floating_point()]
    if not floats:
        return []
    finite = torch.stack([torch.isfinite(value.detach()).all().to(floats[0][1].device) for _, value in floats])
    return [name for (name, _), good in zip(floats, finite.tolist(), strict=True) if not good]


def stop(runner, iteration: int, broken: list[str]) -> None:
    """End a run whose weights ``broken`` are not finite."""
    layers = [
        layer for layer in upgraded_layers(bare_network(runner)) if any(k.startswith(f'{layer}.') for k in broken)
    ]
    rest = [key for key in broken if not any(key.startswith(f'{layer}.') for layer in layers)]
    titled = (('of the upgraded layers', layers), ('of others', rest))
    raise TrainingError(
        f'iteration {iteration}: weights are not finite: '
        + '; '.join(f'{title} {listed(names, 5)}' for title, names in titled if names)
        + f'. {TAME_OFFSETS} OffsetLoggerHook(interval=1) names the layer whose offsets break first. '
        + what_is_left(runner)
    )
