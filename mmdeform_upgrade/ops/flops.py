# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Formulas for ``torch.utils.flop_counter``, which would count the operator as nothing."""

from __future__ import annotations

import importlib
import math
import sys
from typing import Any

import torch

Shape = tuple[int, ...]
_COUNTER = 'torch.utils.flop_counter'


def forward_flops(input: Shape, offset: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """Two for each multiplication and addition of the convolution; the interpolation is not counted."""
    return 2 * offset[0] * offset[2] * offset[3] * math.prod(weight)


def backward_flops(grad_output: Shape, input: Shape, offset: Shape, weight: Shape, *args: Any, **_: Any) -> int:
    """One product as long as the forward pass's for the columns, and one for the weight."""
    need_input, need_plan, need_weight = args[3]
    return (int(need_input or need_plan) + int(need_weight)) * forward_flops(input, offset, weight)


def register(load: bool = False) -> None:
    """Have PyTorch's counter know the formulas, once it is imported.

    An upgraded layer registers them when it is made. Without one, a counter knows the operator if it was imported
    before this package, or made after the operator's first call.

    Args:
        load: Import the counter, and with it triton where that is installed (half a second), which importing this
            package does not.
    """
    counter: Any = importlib.import_module(_COUNTER) if load else sys.modules.get(_COUNTER)
    formula = getattr(counter, 'register_flop_formula', None)  # since torch 2.2
    operators = torch.ops.mmdeform_upgrade
    if formula is None or operators.deform_conv2d in counter.flop_registry:
        return
    formula(operators.deform_conv2d)(forward_flops)
    formula(operators.deform_conv2d_backward)(backward_flops)
