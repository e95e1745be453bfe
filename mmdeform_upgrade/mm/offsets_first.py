# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""``OffsetsFirstHook``: a fine-tune that trains the offsets alone before it trains everything."""

from __future__ import annotations

from typing import Any, List, Optional

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from ..errors import ConfigError
from ..layers import upgraded_layers
from .network import bare_network


class OffsetsFirstHook(Hook):
    """Freezes everything but the offset branches for the first iterations of a fine-tune.

    A frozen parameter has no gradient, so an optimizer of PyTorch leaves it, its momentum and its decay alone. Running
    statistics of normalisation layers that are in training mode go on.

    Args:
        iterations: how many iterations train the offsets alone.

    Raises:
        ConfigError: ``iterations`` is no positive whole number; when training begins: no layer is upgraded, or the
            network is distributed, whose wrappers expect a gradient from every parameter.
    """

    priority = 'VERY_LOW'

    def __init__(self, iterations: int):
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ConfigError(f'OffsetsFirstHook: iterations={iterations!r}; expected a positive whole number')
        self.iterations = iterations
        self._frozen: Optional[List[nn.Parameter]] = None

    def before_train(self, runner) -> None:
        """Check that there is something to train."""
        if is_model_wrapper(runner.model):
            raise ConfigError(
                f'OffsetsFirstHook does not train a {type(runner.model).__name__}: train on one GPU, or '
                'take the hook out of custom_hooks'
            )
        if not upgraded_layers(bare_network(runner)):
            raise ConfigError(
                'OffsetsFirstHook: the network has no upgraded layer whose offsets could be trained; '
                'take it out of custom_hooks'
            )

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Freeze before the first iteration, also that of a resumed run, and release after the last."""
        if runner.iter < self.iterations and self._frozen is None:
            network = bare_network(runner)
            offsets = {id(p) for layer in upgraded_layers(network).values() for p in layer.conv_offset.parameters()}
            self._frozen = [p for p in network.parameters() if p.requires_grad and id(p) not in offsets]
            for parameter in self._frozen:
                parameter.requires_grad_(False)
                parameter.grad = None
        elif runner.iter >= self.iterations and self._frozen is not None:
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            self._frozen = None
