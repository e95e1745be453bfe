# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Receptive fields: theoretical, and effective (Luo et al. 2016), how much each input pixel moves one position."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import contextmanager
from typing import Any, Iterator

import torch
from torch import Tensor, nn

from ..layers import upgraded_layers
from .complexity import hooked
from .offsets import nearest


def receptive_field(features: Callable[[Tensor], Tensor], images: Tensor, position: tuple[float, float]) -> Tensor:
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
        y, x = nearest(torch.tensor([position], dtype=torch.float64), images.shape[2:], output.shape[2:])[0].tolist()
        (gradient,) = torch.autograd.grad(output[0, :, y, x].sum(), images)
    field = gradient[0].abs().sum(0)
    return field / field.sum().clamp_min(1e-30)


def reaches(
    layers: Mapping[str, nn.Module], images: Tensor, run: Callable[[Tensor], Any]
) -> dict[str, tuple[float, float]]:
    """How many pixels of the picture a position in the middle of each layer's output sees, in one forward pass.

    Args:
        layers: modules inside of a plain network in eval mode.
        images: (N, 3, H, W), typical pictures.
        run: runs the network on them.

    Returns:
        For each layer that ran the side of its theoretical receptive field, and of the square that holds 95 % of the
        effective one, averaged over the pictures. Convolutions and pooling count; attention does not.
    """
    images = images.detach().requires_grad_()
    outputs: dict[str, Tensor] = {}
    keep = [m.register_forward_hook(lambda _, a, out, n=n: outputs.setdefault(n, out)) for n, m in layers.items()]
    with torch.enable_grad(), hooked(keep):
        run(images)
    found = {}
    for name, output in outputs.items():
        middle = output[..., output.shape[-2] // 2, output.shape[-1] // 2].sum()
        (gradient,) = torch.autograd.grad(middle, images, retain_graph=True)
        theoretical = _theoretical(output.grad_fn, images.shape[-1])
        found[name] = theoretical, min(theoretical, width(gradient.abs().sum((0, 1))))
    return found


def width(field: Tensor) -> float:
    """Side of the square around the centre of mass that holds 95 % of a field; 0 for one that is zero everywhere."""
    if not field.any():
        return 0.0
    y, x = (torch.arange(size, dtype=field.dtype, device=field.device) for size in field.shape)
    total = field.sum()
    away_y = (y - (field.sum(1) * y).sum() / total).abs()
    away_x = (x - (field.sum(0) * x).sum() / total).abs()
    away = torch.maximum(away_y[:, None], away_x[None, :]).flatten()
    order = away.argsort()
    held = field.flatten()[order].cumsum(0)
    return 2 * float(away[order][int((held < 0.95 * total).sum())]) + 1


def _theoretical(node: Any, width: int) -> float:
    """Longest way from an output back to the picture, each window as wide as its steps on the picture."""
    order, seen, stack = [], set(), [(node, False)]
    while stack:  # depth first; graphs of real networks are deeper than Python recurses
        current, done = stack.pop()
        if done:
            order.append(current)
        elif current is not None and current not in seen:
            seen.add(current)
            stack.append((current, True))
            stack += [(following, False) for following, _ in current.next_functions]
    reach: dict[Any, float] = {}
    for current in order:
        reach[current] = _widening(current, width) + max(
            (reach[f] for f, _ in current.next_functions if f), default=1.0
        )
    return reach[node]


def _widening(node: Any, width: int) -> float:
    name = node.name()
    if name.startswith('ConvolutionBackward'):
        kernel, input = node._saved_weight.shape[-1], node._saved_input
    elif 'Pool2D' in name and hasattr(node, '_saved_kernel_size'):
        kernel, input = node._saved_kernel_size[-1], node._saved_self
    else:
        return math.inf if name.startswith(('MeanBackward1', 'AdaptiveAvgPool')) else 0.0
    dilation = getattr(node, '_saved_dilation', (1,))[-1]
    return (kernel - 1) * dilation * round(width / input.shape[-1])


def computed_from(node: Any) -> set[Any]:
    """A node of PyTorch's autograd graph, and all those before it."""
    seen, stack = {node}, [node]
    while stack:
        new = {following for following, _ in getattr(stack.pop(), 'next_functions', ())} - seen - {None}
        seen |= new
        stack += new
    return seen


@contextmanager
def offsets_at_zero(model: nn.Module, names: Collection[str] | None = None) -> Iterator[None]:
    """The model as if none of its offsets, or those of some layers, had been learned, while the context lasts."""
    branches = [layer.conv_offset for n, layer in upgraded_layers(model).items() if names is None or n in names]
    with hooked(branch.register_forward_hook(lambda _, args, output: torch.zeros_like(output)) for branch in branches):
        yield
