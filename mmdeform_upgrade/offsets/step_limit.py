# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""How far one step of Adam moves the offsets, and a limit to it.

Adam moves every weight of an offset branch by its rate, whatever the gradient's size. So an offset moves by the rate
times a sum over the branch's inputs, which grows with their number and their size: the same rate is a tenth of a pixel
in a narrow layer and several pixels in a wide one, where a few steps lead the taps out of the map.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ..layers import OffsetBranch, upgraded_layers
from ..ops.autograd import is_compiling
from .optimizer import OffsetOptimizer

MAX_STEP = 0.5  # pixels; the trials of docs/results.md had 0.06 to 0.52
SHARE = 0.02  # of the map's shorter side, where that is less; there 0.003 to 0.021


class StepLimit:
    """Lowers the rates of offsets that one step of their Adam would move too far.

    That is more than ``pixels``, or than a fiftieth of the shorter side of the layer's input. The first step's direction
    is measured on the inputs of the next forward pass, one layer at a time; the steps so far are shortened as the rate is,
    since taps that have left the map get no gradient that leads back. Then it is done.

        limit = StepLimit(model, optimizer)
        for batch in batches:
            loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            limit.apply()

    Rates are changed for whole groups of the optimizer, by their fastest layer (``OffsetOptimizerConstructor`` makes a
    group of every layer). Where the offsets have no Adam of their own there is nothing to do. Nothing is measured in a
    compiled model: run it under ``torch.compiler.set_stance('force_eager')`` until it is done, as the hook does.

    Args:
        model: the upgraded network, its offsets as they will start.
        optimizer: its optimizer.
        pixels: the largest root mean square of a step at the schedule's peak, in pixels of the layer's input;
            ``float('inf')`` leaves all rates as they are.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | None, pixels: float = MAX_STEP) -> None:
        self.pixels = pixels
        self._optimizer: Any = optimizer
        self._handles: list[Any] = []
        # Of squared steps of rate 1, in pixels and in what is allowed, and their number.
        self._sums: dict[str, Tensor] = {}
        self._groups: dict[str, int] = {}  # of each layer, its index among the optimizer's
        self._starts: dict[int, list[Tensor]] = {}  # of each such group, its parameters before the first step
        if pixels == math.inf or not isinstance(optimizer, OffsetOptimizer) or not isinstance(optimizer.offsets, Adam):
            return
        of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group['params'] if _to_limit(group)}
        for name, layer in upgraded_layers(model).items():
            branch = next(m for m in layer.conv_offset.modules() if isinstance(m, OffsetBranch))  # FSDP may wrap it
            if id(branch.weight) in of:
                self._groups[name] = i = of[id(branch.weight)]
                zero = optimizer.param_groups[i].get('from_zero', False)  # of a run that was cut before the measurement
                start = branch.weight.detach().clone() if branch.weight.any() and not zero else None
                self._handles.append(branch.register_forward_hook(partial(self._measure, name, start)))
        for i in set(self._groups.values()):
            group = optimizer.param_groups[i]
            zero = group.setdefault('from_zero', not any(bool(p.any()) for p in group['params']))
            self._starts[i] = [torch.zeros_like(p) if zero else p.detach().clone() for p in group['params']]

    def _measure(self, name: str, start: Tensor | None, branch: OffsetBranch, args: Any, _: Tensor) -> None:
        if is_compiling() or not branch.training:
            return
        weight = branch.weight.detach()  # whole, also where FSDP shards it elsewhere
        if start is not None and start.shape != weight.shape:
            return
        direction = (weight if start is None else weight - start).sign()
        if direction.any():
            sums = direction.new_zeros(3, dtype=torch.float32)
            if args[0].numel():
                square = squared_step(direction, *args)
                most = min(self.pixels, SHARE * min(args[0].shape[-2:]))
                sums = torch.stack([square, square / most**2, torch.ones_like(square)])
            self._sums[name] = self._sums.get(name, 0) + sums

    @torch.no_grad()
    def apply(self) -> dict[str, tuple[float, float]]:
        """After an iteration: lower the rates that are too fast, once they are measured, and shorten the steps so far.

        Returns:
            The layers whose rates were lowered: the pixels of a step at the rate that they had, and the factor.
        """
        if self.done:
            return {}
        device = next(iter(self._starts.values()))[0].device
        zero = torch.zeros(3, device=device)
        sums = torch.stack([self._sums.get(name, zero) for name in self._groups])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)  # also of ranks on which no layer has run
        if not sums[:, 2].any():
            return {}
        starts, self._starts, self._sums = self._starts, {}, {}
        self.close()
        pixels, excess = (sums[:, :2] / sums[:, 2:].clamp(min=1)).sqrt().T.tolist()
        lowered, scaling = {}, _scaling(self._optimizer)
        for i, group in enumerate(self._optimizer.param_groups):
            own = {name: k for k, (name, of) in enumerate(self._groups.items()) if of == i}
            if not own:
                continue
            lr, group['limited'] = group['offset_lr'], True  # kept in the optimizer's state, for a resumed run
            fastest = scaling * lr * max(excess[k] for k in own.values())
            if fastest > 1:
                group['offset_lr'] = lr / fastest
                for parameter, start in zip(group['params'], starts[i], strict=True):
                    parameter.lerp_(start, 1 - 1 / fastest)
                lowered.update({name: (scaling * lr * pixels[k], 1 / fastest) for name, k in own.items()})
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


def _to_limit(group: dict[str, Any]) -> bool:
    # A multiple of the weights' rate is the user's own choice.
    return bool(group.get('offsets')) and not (group.get('multiple') or group.get('limited'))


def _scaling(optimizer: OffsetOptimizer) -> float:
    """What ``auto_scale_lr`` has multiplied the rates by since the optimizer was built, at the schedule's peak."""
    leader = next((group for group in optimizer.param_groups if 'peak_lr' in group), None)
    if leader is None or 'max_lr' in leader:
        return 1.0
    start = leader.get('initial_lr')  # of a scheduler, which may have begun with a part of it
    return start / leader['peak_lr'] if start else max(1.0, leader['lr'] / leader['peak_lr'])


@torch.no_grad()
def squared_step(direction: Tensor, input: Tensor, *geometry: Any) -> Tensor:
    """Mean square of the offsets, in pixels, that weights of this ``direction`` alone predict from a branch's input."""
    with torch.autocast(input.device.type, enabled=False):  # squares at a rate of 1 leave the range of float16
        return F.conv2d(input.float(), direction.float(), None, *geometry).square().mean()
