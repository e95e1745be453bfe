# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The network of a run without what is wrapped around it."""

from __future__ import annotations

from itertools import chain
from typing import Iterator, Tuple

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from ..layers import unwrapped_name


def bare_network(runner) -> nn.Module:
    """The network without distributed wrappers and test-time augmentation, whose keys checkpoints have."""
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def named_tensors(model: nn.Module) -> Iterator[Tuple[str, Tensor]]:
    """Parameters and buffers under the names that they have in a checkpoint."""
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        yield unwrapped_name(name), value
