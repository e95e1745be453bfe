# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""How far one step of Adam moves the offsets, and a limit to it.

Adam moves every weight of an offset branch by its rate, whatever the gradient's size. So an offset moves by the rate
times a sum over the branch's inputs, which grows with their number and their size: the same rate is a tenth of a pixel
in a narrow layer and several pixels in a wide one, where a few steps lead the taps out of the map.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ..layers import OffsetBranch, upgraded_layers
from .optimizer import OffsetOptimizer

MAX_STEP = 0.5  # pixels; trials that gained had 0.07 to 0.45 (docs/results.md)


class StepLimit:
    """Lowers the rates of offsets that one step of their Adam would move by more than ``pixels``.

    The first step's direction is measured on the inputs of the next forward pass, one layer at a time; then it is done.

        limit = StepLimit(model, optimizer)
        for batch in batches:
            loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            limit.apply()

    Rates are changed for whole groups of the optimizer, by their fastest layer (``OffsetOptimizerConstructor`` makes a
    group of every layer). Where the offsets have no Adam of their own there is nothing to do.

    Args:
        model: the upgraded network, its offsets as they will start.
        optimizer: its optimizer.
        pixels: the largest root mean square of a step at the schedule's peak, in pixels of the layer's input.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | None, pixels: float = MAX_STEP) -> None:
        self.pixels = pixels
        self._optimizer: Any = optimizer
        self._handles: list[Any] = []
        self._squares: dict[str, Tensor] = {}  # sum and count, of a step of rate 1
        self._groups: dict[str, int] = {}  # of each layer, its index among the optimizer's
        if not isinstance(optimizer, OffsetOptimizer) or not isinstance(optimizer.offsets, Adam):
            return
        of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group['params'] if _limited(group)}
        for name, layer in upgraded_layers(model).items():
            branch = next(m for m in layer.conv_offset.modules() if isinstance(m, OffsetBranch))  # FSDP may wrap it
            if id(branch.weight) in of:
                self._groups[name] = of[id(branch.weight)]
                start = branch.weight.detach().clone() if branch.weight.any() else None
                self._handles.append(branch.register_forward_hook(partial(self._measure, name, start)))

    def _measure(self, name: str, start: Tensor | None, branch: OffsetBranch, args: Any, _: Tensor) -> None:
        if torch.compiler.is_compiling() or not branch.training:
            return
        weight = branch.weight.detach()  # whole, also where FSDP shards it elsewhere
        if start is not None and start.shape != weight.shape:
            return
        direction = (weight if start is None else weight - start).sign()
        if direction.any():
            square = squared_step(direction, *args) if args[0].numel() else direction.new_zeros(())
            counted = torch.stack([square, square.new_tensor(args[0].numel() > 0)])
            self._squares[name] = self._squares.get(name, 0) + counted

    def apply(self) -> dict[str, float]:
        """After an iteration: lower the rates that are too fast, once they are measured.

        Returns:
            The layers whose rates were lowered, with the pixels of a step at the rate that they had.
        """
        if not self._squares:
            return {}
        found, self._squares = self._squares, {}
        self.close()
        zero = torch.zeros_like(next(iter(found.values())))
        sums = torch.stack([found.get(name, zero) for name in self._groups])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        roots = (sums[:, 0] / sums[:, 1].clamp(min=1)).sqrt().tolist()
        lowered = {}
        for i, group in enumerate(self._optimizer.param_groups):
            steps = {
                name: root * group['offset_lr']
                for (name, own), root in zip(self._groups.items(), roots, strict=True)
                if own == i
            }
            fastest = max(steps.values(), default=0.0)
            if fastest > self.pixels:
                group['offset_lr'] *= self.pixels / fastest
                lowered.update(steps)
        return lowered

    @property
    def done(self) -> bool:
        """Whether nothing is left to measure."""
        return not self._handles

    def close(self) -> None:
        """Measure no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _limited(group: dict[str, Any]) -> bool:
    # A multiple of the weights' rate is the user's own choice.
    return bool(group.get('offsets')) and not group.get('multiple')


@torch.no_grad()
def squared_step(direction: Tensor, input: Tensor, *geometry: Any) -> Tensor:
    """Mean square of the offsets, in pixels, that weights of this ``direction`` alone predict from a branch's input."""
    return F.conv2d(input.float(), direction.float(), None, *geometry).square().mean()
