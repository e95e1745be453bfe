# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""``OffsetLoggerHook``: what the offsets do while they train, and a stop where they are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor

from ..analysis.offsets import OffsetRecorder, OffsetStatistics, statistics
from ..checkpoint import not_finite
from ..errors import ConfigError
from ..layers import upgraded_layers
from .run import TAME_OFFSETS, bare_network, named_tensors, stop, stop_for_weights


class OffsetLoggerHook(Hook):
    """Logs per upgraded layer how far its taps go, and warns of offsets that explode or never move.

    Every ``interval`` iterations, for one training batch, ``offsets/LAYER/mean`` and ``/percentile95`` (lengths in
    pixels of the layer's input) and ``/outside`` (share of taps a pixel or more outside the map) go to the runner's
    visualizer: ``scalars.json``, TensorBoard or WandB, as configured. Other iterations only look at the loss.

    Args:
        interval: iterations from one record to the next.
        warn_above: warn, once a layer, where the 95th percentile of its offsets passes this length in pixels.
            A few pixels are usual; runs that fell apart had 1e2 to 1e3.
        patience: warn, once a layer, where the offset branch has not changed at all in so many iterations.

    Raises (from the runner's calls):
        ConfigError: a setting makes no sense, or the network has no ``ZeroOffsetDCN``.
        TrainingError: a layer's offsets are not finite, or weights after a loss that is not. The last checkpoint stays.
    """

    # After the optimizer's step and before LoggerHook.
    priority = 'NORMAL'

    def __init__(self, interval: int = 50, warn_above: float = 100.0, patience: int = 500):
        for name, value in (('interval', interval), ('warn_above', warn_above), ('patience', patience)):
            if not value > 0:
                raise ConfigError(f'OffsetLoggerHook: {name} is {value}; expected a number above 0')
        self.interval, self.warn_above, self.patience = interval, warn_above, patience
        self._recorder: OffsetRecorder | None = None
        self._start: dict[str, Sequence[Tensor]] = {}
        self._first_iter = 0
        self._warned: set[str] = set()

    def before_train(self, runner) -> None:
        """Remember the offset branches as they are now."""
        layers = upgraded_layers(bare_network(runner))
        if not layers:
            raise ConfigError(
                'OffsetLoggerHook: the model has no ZeroOffsetDCN, so there are no offsets to log; set '
                "model.backbone=dict(type='DeformUpgrade', ...), or take the hook out"
            )
        self._first_iter = runner.iter
        self._start = {
            name: [p.detach().clone() for p in layer.conv_offset.parameters()] for name, layer in layers.items()
        }

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Record the offsets of this iteration, if it is one of them."""
        if self.every_n_train_iters(runner, self.interval):
            self._recorder = OffsetRecorder(bare_network(runner))
            self._recorder.__enter__()

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """Check the loss, and log and judge what was recorded."""
        recorder, self._recorder = self._recorder, None
        found: dict[str, OffsetStatistics] = {}
        if recorder is not None:
            recorder.close()
            found = {name: statistics(record) for name, record in recorder.records.items()}
            broken = [name for name, numbers in found.items() if not math.isfinite(numbers.largest)]
            if broken:
                problem = f'offsets of {broken[0]} are not finite, the first of the layers in forward order.'
                stop(runner, runner.iter + 1, f'{problem} {TAME_OFFSETS}')
        _check_loss(outputs, runner)
        if found:
            kinds = ('mean', 'percentile95', 'outside')
            values = {f'offsets/{name}/{key}': getattr(found[name], key) for name in found for key in kinds}
            runner.visualizer.add_scalars(values, step=runner.iter + 1)
            self._warn_of_explosions(runner, found)
        if self._start and runner.iter + 1 - self._first_iter >= self.patience:
            self._warn_of_standstill(runner)

    def _warn_of_explosions(self, runner, found: dict[str, OffsetStatistics]) -> None:
        for name, numbers in found.items():
            if numbers.percentile95 > self.warn_above and name not in self._warned:
                self._warned.add(name)
                runner.logger.warning(
                    f'Iteration {runner.iter + 1}: offsets of {name} explode: mean {numbers.mean:.4g}, 95 % below '
                    f'{numbers.percentile95:.4g}, largest {numbers.largest:.4g} pixels, {100 * numbers.outside:.0f} % '
                    f'of its taps outside the map; expected {self.warn_above:g} at most. {TAME_OFFSETS}'
                )

    def _warn_of_standstill(self, runner) -> None:
        layers = upgraded_layers(bare_network(runner))
        start, self._start = self._start, {}  # looked at once
        for name, before in start.items():
            branch = list(layers[name].conv_offset.parameters())
            if all(torch.equal(now.detach(), was) for now, was in zip(branch, before, strict=True)):
                runner.logger.warning(
                    f'Offsets of {name} have not moved in {runner.iter + 1 - self._first_iter} iterations: '
                    f'{_why_still(branch, runner.optim_wrapper)}.'
                )


def _why_still(branch: Sequence[Tensor], optim_wrapper: Any) -> str:
    """The first reason that applies."""
    if not any(p.requires_grad for p in branch):
        return 'they are frozen (requires_grad=False); lower frozen_stages, or exclude the layer from the targets'
    wrappers = list(optim_wrapper.values()) if hasattr(optim_wrapper, 'optim_wrappers') else [optim_wrapper]
    groups = [group for wrapper in wrappers for group in wrapper.param_groups]
    own = {id(p) for p in branch}
    rates = [group['lr'] for group in groups if any(id(p) in own for p in group['params'])]
    if not rates:
        return 'the optimizer does not hold them; upgrade the network in the config, before the optimizer is built'
    if not any(rates):
        return "their learning rate is 0; look for 'conv_offset' in optim_wrapper.paramwise_cfg, and at param_scheduler"
    return (
        'they are in the optimizer, and no gradient reaches them, or none that their precision can hold; look '
        'whether the layer takes part in the loss, and whether the loss scale of mixed precision keeps falling'
    )


def _check_loss(outputs: dict | None, runner) -> None:
    loss = (outputs or {}).get('loss')
    if isinstance(loss, Tensor) and not torch.isfinite(loss).all():
        # Mixed precision leaves out the steps of losses that overflow.
        weights = ((name, p) for name, p in named_tensors(bare_network(runner)) if p.requires_grad)
        if broken := not_finite(weights):
            stop_for_weights(runner, runner.iter + 1, broken)
