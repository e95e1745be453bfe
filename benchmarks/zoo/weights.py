# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Weights and statistics for a network that nobody trained, so that its outputs are like a trained one's."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Iterator
from unittest import mock

import torch
from torch import Tensor, nn

from mmdeform_upgrade.targets import predicts_offsets

OFFSETS = 0.1  # weights of offset predictors; offsets of many pixels would turn rounding errors into other samples
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_CHUNK = 1 << 20  # weights drawn at a time


class Draws:
    """Normal weights under which activations keep their size, copied from a pool: drawing each would take longer.

    Args:
        seed: of the pool.
    """

    def __init__(self, seed: int = 0):
        self._pool = torch.randn(2 * _CHUNK, generator=torch.Generator().manual_seed(seed))
        self._start = 0

    def __call__(self, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Fill ``weight`` (O, ...), with the signature of torch's initialisers."""
        deviation = (2 / max(1, weight[0].numel())) ** 0.5  # He et al. 2015, eq. 10
        with torch.no_grad():
            for chunk in weight.view(-1).split(_CHUNK):
                torch.mul(self._pool[self._start : self._start + len(chunk)], deviation, out=chunk)
                self._start = (self._start + 7919) % _CHUNK
        return weight


def raw(weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Leave ``weight`` raw memory: whatever is not loaded afterwards shows."""
    return weight


@contextmanager
def initializing(fill: Callable[..., Tensor]) -> Iterator[None]:
    """What torch and the frameworks draw for convolutions and linear layers is filled by ``fill``."""
    with ExitStack() as stack:
        for name in ('kaiming_uniform_', 'kaiming_normal_', 'xavier_uniform_', 'xavier_normal_'):
            stack.enter_context(mock.patch.object(nn.init, name, fill))
        yield


def randomize(module: nn.Module, fill: Draws) -> None:
    """The framework's own initialisation, but kernels and norms as of a trained network."""
    if callable(getattr(module, 'init_weights', None)):
        with initializing(fill):
            module.init_weights()  # type: ignore[operator]  # some parameters are raw memory before
    modules = dict(module.named_modules())
    for name, child in modules.items():
        weight = getattr(child, 'weight', None)
        if not isinstance(weight, nn.Parameter):
            continue
        # mmdet's TridentConv is no _ConvNd, and nothing initialises it: raw memory, which need not be finite.
        if isinstance(child, (nn.Linear, nn.modules.conv._ConvNd)) or weight.dim() == 4:
            fill(weight)
            if predicts_offsets(name, modules):
                weight.mul_(OFFSETS)
            if isinstance(gamma := getattr(child, 'weight_gamma', None), Tensor):  # mmcv's ConvAWS2d: its deviation
                gamma.fill_((2 / weight[0].numel()) ** 0.5)
        elif isinstance(child, _NORMS):  # a block's last one often starts at 0, and would hide what is before it
            nn.init.uniform_(weight, 0.5, 1)
            nn.init.uniform_(child.bias, -0.1, 0.1)


def has_batch_norms(module: nn.Module) -> bool:
    """Whether there is anything to calibrate."""
    return any(isinstance(child, nn.modules.batchnorm._BatchNorm) for child in module.modules())


@contextmanager
def calibrating(module: nn.Module) -> Iterator[None]:
    """Batch norms take the statistics of what passes; everything else stays in evaluation mode."""
    norms = {
        m: (m.momentum, m.training)
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats and m.eps > 0
    }
    for norm in norms:
        norm.momentum = 1.0
        norm.training = True
    try:
        yield
    finally:
        for norm, (momentum, training) in norms.items():
            norm.momentum, norm.training = momentum, training
            # The deepest maps have a handful of pixels; a variance near zero by chance would magnify rounding errors.
            norm.running_var.clamp_(min=0.1 * float(norm.running_var.mean()))  # type: ignore[union-attr]
