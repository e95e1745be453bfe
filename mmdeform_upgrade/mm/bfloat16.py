# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""``BFloat16Hook``: bfloat16 arithmetic where MMEngine's mixed precision refuses to train, on CPUs above all."""

from __future__ import annotations

from functools import partial
from typing import Any, Sequence

import torch
from mmengine.hooks import Hook
from torch import nn
from torch.utils._pytree import tree_map_only

from ..errors import ConfigError
from .run import bare_network

USUAL_PARTS = ('backbone', 'neck', 'rpn_head', 'bbox_head', 'roi_head.bbox_head', 'decode_head', 'auxiliary_head')


class BFloat16Hook(Hook):
    """Computes parts of the network under bfloat16 autocast, in channels-last memory; losses and boxes in float32.

    On CPUs with bfloat16 matrix units (AMX) a training step of a ResNet-50 takes about a third of the time.
    Weights, optimizer and checkpoints stay in float32, and what a part returns is converted back, so that losses,
    assigners, RoI extractors and NMS see contiguous float32. It serves training, validation and test alike.

    Args:
        parts: dotted names of the modules, such as ``'backbone'`` or ``'roi_head.bbox_head'``. Of each, ``forward`` is
            what the network has to call. Without a list, those of :data:`USUAL_PARTS` that the network has.

    Raises (from the runner's calls):
        ConfigError: the network has no such part, or none of the usual ones.
    """

    priority = 'HIGHEST'

    def __init__(self, parts: Sequence[str] | None = None):
        self.parts = parts

    def before_run(self, runner) -> None:
        """Exchange the parts' ``forward``."""
        model = bare_network(runner)
        known = dict(model.named_modules())
        parts = [part for part in USUAL_PARTS if part in known] if self.parts is None else self.parts
        missing = [part for part in parts if part not in known]
        if missing or not parts:
            raise ConfigError(
                f'BFloat16Hook: the network has no {", ".join(missing or USUAL_PARTS)}; it has '
                f'{", ".join(name for name, _ in model.named_children())}: set parts=[...]'
            )
        for part in parts:
            module = known[part].to(memory_format=torch.channels_last)
            module.forward = partial(_forward, module)  # of which copies of the network have their own


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    device = next(module.parameters()).device.type
    with torch.autocast(device, torch.bfloat16):
        out = type(module).forward(module, *tree_map_only(torch.Tensor, _channels_last, args), **kwargs)
    return tree_map_only(torch.Tensor, _plain, out)


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    # mmcv's operators on CPUs, RoIAlign for one, take any memory for contiguous and read channels-last maps wrong.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous()
