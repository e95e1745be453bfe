# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Whether offsets have something to learn: the signal in their gradient, before anything is trained.

For the gradients g_1 ... g_N of N batches, ``|mean|^2 / (variance / N)`` is 1 on average where they are pure noise, and
1 + N |E g|^2 / Var g where they agree. How far chance moves it depends on how the noise is distributed: where few
directions hold it, a ratio of 4 is nothing. So that is measured as well. With S the sum of the gradients before g_i,
the ratio exceeds 1 by the sum of the products g_i . S, scaled; without a signal these are martingale differences, and
their sum over the root of the sum of their squares is a standard normal number, whatever the noise looks like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Iterator

import torch
from torch import Tensor, nn

from ..errors import TargetError, TrainingError
from ..layers import ZeroOffsetDCN, upgraded_layers
from ..offsets.step_limit import squared_step
from .complexity import PLAIN, hooked, multiplications

THRESHOLD = 2.5  # of z; pure noise passes it in at most 0.5 % of layers, for any number of batches
FEWEST = 12  # batches; with fewer, not even equal gradients could pass the threshold


@dataclass(frozen=True)
class LayerSignal:
    """One layer's answer."""

    layer: str  # its dotted name
    snr: float  # |mean|^2 / (variance / N) of the gradient of conv_offset.weight; 1 for pure noise
    z: float  # how sure it is that there is a signal, in standard errors; at most about 0.87 sqrt(N)
    weight_snr: float  # the same ratio of the layer's own weight: what plain training still has to learn there
    step: float  # how far one step of Adam moves the offsets, root mean square in pixels of the layer's input
    cost: float  # multiplications that the upgrade adds, over those of the whole plain network
    batches: int  # N

    @property
    def noise_scale(self) -> float:
        """Batches whose mean gradient is half signal, half noise: the ratio without its N (McCandlish et al. 2018)."""
        return self.batches / (self.snr - 1) if self.snr > 1 else math.inf

    @property
    def verdict(self) -> str:
        """``'learns'``, ``'noise'``, or ``'no gradient'`` where the loss does not depend on the layer."""
        if math.isnan(self.snr):
            return 'no gradient'
        return 'learns' if self.z > THRESHOLD else 'noise'


class _Tally:
    """Sums over the gradients of one parameter; single gradients are not kept."""

    def __init__(self, parameter: Tensor):
        self.sum = torch.zeros(parameter.numel(), device=parameter.device)
        self.squares = self.products = self.squared_products = 0.0

    def add(self, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        flat = gradient.detach().flatten().float()
        product = float(flat @ self.sum)
        self.sum += flat
        self.squares += float(flat @ flat)
        self.products += product
        self.squared_products += product**2

    def ratio(self, count: int) -> tuple[float, float]:
        """|mean|^2 / (variance / N), and z."""
        noise = (self.squares - (self.squares + 2 * self.products) / count) / (count - 1)  # trace of the covariance
        if not noise > 0:
            return math.nan, math.nan
        z = self.products / math.sqrt(self.squared_products) if self.squared_products else 0.0  # of a single gradient
        return 1 + 2 * self.products / (count - 1) / noise, z


def offset_signal(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    lr: float = 2e-3,
) -> list[LayerSignal]:
    """Measure the signal in the offsets' gradient over batches of the training set; nothing is trained.

    Train mode or not is the caller's choice, and should be that of the training; buffers (running statistics) are put
    back. One backward pass a batch serves all layers, and one gradient sum a layer is kept.

    Args:
        model: an untouched upgrade of a trained network, see :func:`upgrade_`.
        batches: at least 12, drawn as the training draws them. Wrap them in ``tqdm`` for a progress bar.
        loss: ``loss(model, batch)``, a tensor of one element.
        lr: rate of the offsets' Adam, for ``step``.

    Returns:
        The upgraded layers in registration order; frozen offset branches are left out.

    Raises:
        TargetError: the model has no upgraded layer whose offsets train.
        TrainingError: a loss is not finite, or there are too few batches.
    """
    layers = {name: m for name, m in upgraded_layers(model).items() if m.conv_offset.weight.requires_grad}
    if not layers:
        raise TargetError(f'{type(model).__name__} has no ZeroOffsetDCN whose offsets train: upgrade it first')
    offsets = {name: _Tally(layer.conv_offset.weight) for name, layer in layers.items()}
    weights = {name: _Tally(layer.weight) for name, layer in layers.items() if layer.weight.requires_grad}
    parameters = [layers[name].conv_offset.weight for name in offsets] + [layers[name].weight for name in weights]
    count, costs, steps = 0, {}, dict.fromkeys(layers, math.nan)
    with _buffers_kept(model), torch.enable_grad():
        for count, batch in enumerate(batches, 1):
            with ExitStack() as stack:
                if count == 1:
                    costs = stack.enter_context(multiplications(model))
                elif count == 2:  # one batch's step on another one's input: noise does not look coherent
                    stack.enter_context(_steps(layers, offsets, lr, steps))
                value = loss(model, batch)
            if not bool(torch.isfinite(value).all()):
                raise TrainingError(f'the loss of batch {count} is {value.item()}, expected a finite number')
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            for tally, gradient in zip((*offsets.values(), *weights.values()), gradients, strict=True):
                tally.add(gradient)
    if count < FEWEST:
        raise TrainingError(f'{count} batches cannot tell a signal from noise: give at least {FEWEST}, better 32')
    return [
        LayerSignal(
            name,
            *offsets[name].ratio(count),
            weight_snr=weights[name].ratio(count)[0] if name in weights else math.nan,
            step=steps[name],
            cost=costs[name] / max(costs[PLAIN], 1.0),
            batches=count,
        )
        for name in layers
    ]


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


@contextmanager
def _steps(
    layers: dict[str, ZeroOffsetDCN], tallies: dict[str, _Tally], lr: float, steps: dict[str, float]
) -> Iterator[None]:
    """Write to ``steps`` how far Adam's first step, ``lr`` for every weight that has a gradient, moves the offsets."""
    squares: dict[str, list[Tensor]] = {name: [] for name in layers}

    def measure(name: str, branch: nn.Module, args: Any, _: Tensor) -> None:
        direction = tallies[name].sum.sign().view_as(branch.get_parameter('weight'))
        squares[name].append(squared_step(direction, *args))

    with hooked(layer.conv_offset.register_forward_hook(partial(measure, name)) for name, layer in layers.items()):
        yield
    steps.update({name: lr * float(torch.stack(found).mean().sqrt()) for name, found in squares.items() if found})
