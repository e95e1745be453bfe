# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The network of a run without what is wrapped around it."""

from __future__ import annotations

import re
from itertools import chain
from typing import Dict, Iterator, Tuple

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from ..layers import ZeroOffsetDCN

_INNER = re.compile(r'_(?:fsdp|checkpoint)_wrapped_module\.')  # what PyTorch's wrappers add to names


def upgraded_layers(model: nn.Module) -> Dict[str, ZeroOffsetDCN]:
    """The deformable layers of a network by dotted name, as in its state dict."""
    return {_INNER.sub('', name): module for name, module in model.named_modules() if isinstance(module, ZeroOffsetDCN)}


def bare_network(runner) -> nn.Module:
    """The network without distributed wrappers and test-time augmentation, whose keys checkpoints have."""
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def named_tensors(model: nn.Module) -> Iterator[Tuple[str, Tensor]]:
    """Parameters and buffers under the names that they have in a checkpoint."""
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        yield _INNER.sub('', name), value
