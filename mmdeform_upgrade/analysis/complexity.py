# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Multiplications of upgraded networks, counted in a forward pass, and by MMEngine's ``get_model_complexity_info``.

MMEngine's tracer sees plain operations, of which it knows the convolution that predicts offsets and the products; the
interpolation is added here. A layer of M input and N output channels, k*k taps and L output positions then counts

    parameters  k*k*M*N + N  +  2*k*k * M * k*k + 2*k*k
    flops       (k*k*M*N  +  2*k*k * M * k*k  +  4 * k*k*M) * L

(paper, section 3; multiplications with their additions are one, as MMEngine counts; 4 corners a sample).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..layers import upgraded_layers

PLAIN = ''


@contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Hooks, by their handles, that are taken off at the end."""
    with ExitStack() as stack:
        for handle in list(handles):
            stack.enter_context(handle)
        yield


@contextmanager
def multiplications(model: nn.Module) -> Iterator[dict[str, float]]:
    """Count the multiplications of the forward passes within: convolutions and linear layers.

    Yields:
        Names of upgraded layers to what their offsets add; ``PLAIN`` to what the network needs without them.
    """
    layers = upgraded_layers(model)
    counts = dict.fromkeys((PLAIN, *layers), 0.0)

    def count_plain(module: nn.Module, _: Any, output: Tensor) -> None:
        channels = output.shape[-1 if isinstance(module, nn.Linear) else 1]
        counts[PLAIN] += output.numel() / channels * module.get_parameter('weight').numel()

    def count_added(name: str, branch: nn.Module, _: Any, output: Tensor) -> None:
        weight = branch.get_parameter('weight')  # (2GK, C, kh, kw); four corners a tap and channel
        counts[name] += output.numel() / output.shape[1] * (weight.numel() + 4 * weight[0].numel())

    plain = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with hooked(
        [m.register_forward_hook(count_plain) for m in plain]
        + [layer.conv_offset.register_forward_hook(partial(count_added, name)) for name, layer in layers.items()]
    ):
        yield counts


def _interpolation_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """One for each corner of each sample and channel."""
    from mmengine.analysis.jit_handles import get_shape

    return math.prod(get_shape(inputs[1])) * get_shape(inputs[0])[-1]


def register_handles() -> None:
    """Have MMEngine count the interpolation; a handle that somebody else has set stays."""
    from mmengine.analysis import complexity_analysis

    handles = getattr(complexity_analysis, '_DEFAULT_SUPPORTED_FLOP_OPS', {})
    handles.setdefault('aten::embedding_bag', _interpolation_flops)
