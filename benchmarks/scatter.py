# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Random offsets of a given spread in an upgraded network, for timings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmdeform_upgrade.analysis.complexity import hooked
from mmdeform_upgrade.layers import upgraded_layers


@torch.no_grad()
def scatter_offsets_(model: nn.Module, sigma: float, run: Callable[[], Any]) -> None:
    """Give every offset branch random weights such that its offsets spread by ``sigma`` pixels.

    At step 0 all offsets are zero, which reads memory in order; a timing should not rely on that.

    Args:
        model: the upgraded network.
        sigma: standard deviation, in pixels.
        run: runs the network once, on typical input.
    """

    def fit(branch: nn.Module, args: Any, output: Tensor) -> Tensor:
        factor = sigma / output.std().clamp_min(1e-12)
        branch.get_parameter('weight').mul_(factor)
        return output * factor

    branches = [layer.conv_offset for layer in upgraded_layers(model).values()]
    for branch in branches:
        nn.init.normal_(branch.weight)
    with hooked(branch.register_forward_hook(fit) for branch in branches):
        run()
