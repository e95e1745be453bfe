# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A look at losses and weights: no run goes on, and no checkpoint is written, with weights that are not finite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...errors import TrainingError, listed
from ...layers import upgraded_layers
from ..messages import TAME_OFFSETS, what_is_left
from ..network import bare_network, named_tensors

_SHOWN = 5


class FiniteCheck:
    """Counts losses that are not finite on their device, and reads the outcome and the weights now and then.

    A loss that is not finite while the weights are, which mixed precision may bring and skip, is a warning; it is an
    error where all of an interval are.

    Args:
        interval: iterations from one look to the next.
    """

    def __init__(self, interval: int):
        self.interval = interval
        self._given: frozenset[str] = frozenset()
        self._seen = 0
        self._bad: Tensor | None = None  # how many losses since the last look were not finite

    def start(self, runner) -> None:
        """Some networks hold an infinity from the start, as the mask of an attention."""
        self._given = frozenset(_not_finite(named_tensors(bare_network(runner))))
        self._seen, self._bad = 0, None

    def count(self, runner, loss: Any) -> None:
        """Count one iteration; looks where an interval ends."""
        self._seen += 1
        if isinstance(loss, Tensor):
            bad = (~torch.isfinite(loss.detach())).any().long()
            self._bad = bad if self._bad is None else self._bad + bad
        if (runner.iter + 1) % self.interval == 0:
            self.look(runner, runner.iter + 1)

    def look(self, runner, iteration: int | None = None) -> None:
        """Read what was counted, and the weights.

        Raises:
            TrainingError: weights, or all losses of an interval, are not finite.
        """
        iteration = runner.iter if iteration is None else iteration
        self.refuse(runner, named_tensors(bare_network(runner)), iteration)
        bad, seen = int(self._bad) if self._bad is not None else 0, self._seen
        self._seen, self._bad = 0, None
        if bad and bad == seen and bad >= self.interval:
            raise TrainingError(
                f'iteration {iteration}: not one loss of the last {bad} iterations is finite, and the weights are. '
                f'{TAME_OFFSETS} With mixed precision, try bfloat16. {what_is_left(runner)}'
            )
        if bad:
            runner.logger.warning(
                f'Iteration {iteration}: {bad} of the last {seen} losses were not finite; the weights still are.'
            )

    def refuse(self, runner, tensors: Iterable[tuple[str, Any]], iteration: int | None = None) -> None:
        """Stop where weights are not finite that were when training began."""
        broken = [name for name in _not_finite(tensors) if name not in self._given]
        if not broken:
            return
        layers = upgraded_layers(bare_network(runner))
        own = [name for name in layers if any(key.startswith(f'{name}.') for key in broken)]
        rest = [key for key in broken if not any(key.startswith(f'{name}.') for name in own)]
        titled = (('of the upgraded layers', own), ('of others', rest))
        text = '; '.join(f'{title} {listed(names, _SHOWN)}' for title, names in titled if names)
        raise TrainingError(
            f'iteration {runner.iter if iteration is None else iteration}: weights are not finite: {text}. '
            f'{TAME_OFFSETS} OffsetLoggerHook(interval=1) names the layer whose offsets break first. '
            f'{what_is_left(runner)}'
        )


def _not_finite(tensors: Iterable[tuple[str, Any]]) -> list[str]:
    """Names of floating-point tensors with anything but finite numbers; one wait for the device."""
    floats = [(name, value) for name, value in tensors if isinstance(value, Tensor) and value.is_floating_point()]
    if not floats:
        return []
    finite = torch.stack([torch.isfinite(value.detach()).all().to(floats[0][1].device) for _, value in floats])
    return [name for (name, _), good in zip(floats, finite.tolist(), strict=True) if not good]
