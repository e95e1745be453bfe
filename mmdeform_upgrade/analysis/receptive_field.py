# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The effective receptive field (Luo et al. 2016): how much each input pixel moves one output position."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Callable, Iterator, Tuple

import torch
from torch import Tensor, nn

from ..layers import ZeroOffsetDCN


def receptive_field(features: Callable[[Tensor], Tensor], images: Tensor, position: Tuple[float, float]) -> Tensor:
    """Absolute gradient of one output position, all channels summed, with respect to the input.

    Args:
        features: a network up to some map, (N, 3, H, W) to (N, C, h, w).
        images: the network's input, N = 1.
        position: (y, x) in pixels of the input; the nearest output position is taken.

    Returns:
        (H, W), scaled to a sum of one; zeros where nothing reaches the position.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        output = features(images)
        y, x = (
            min(
                max(round((position[axis] + 0.5) * output.shape[axis + 2] / images.shape[axis + 2] - 0.5), 0),
                output.shape[axis + 2] - 1,
            )
            for axis in (0, 1)
        )
        (gradient,) = torch.autograd.grad(output[0, :, y, x].sum(), images)
    field = gradient[0].abs().sum(0)
    return field / field.sum().clamp_min(1e-30)


def spread(field: Tensor) -> float:
    """Root of the mean squared distance, in pixels, of a receptive field from its own centre."""
    y, x = (torch.arange(size, dtype=field.dtype, device=field.device) for size in field.shape)
    rows, cols = field.sum(1), field.sum(0)
    total = field.sum().clamp_min(1e-30)
    mean_y, mean_x = (rows * y).sum() / total, (cols * x).sum() / total
    return float((((rows * (y - mean_y) ** 2).sum() + (cols * (x - mean_x) ** 2).sum()) / total).sqrt())


@contextmanager
def offsets_at_zero(model: nn.Module) -> Iterator[None]:
    """The model as if none of its offsets had been learned, for as long as the context lasts."""

    def zero(branch: nn.Module, args: object, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    hooks = [m.conv_offset.register_forward_hook(zero) for m in model.modules() if isinstance(m, ZeroOffsetDCN)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
