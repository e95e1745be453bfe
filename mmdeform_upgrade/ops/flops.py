# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Formulas for ``torch.utils.flop_counter``, which would count the operator as nothing.

That module imports triton wherever it is installed, so it is not imported here: the formulas are handed over once
somebody else imports it.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

Shape = tuple[int, ...]
_COUNTER = 'torch.utils.flop_counter'


def forward_flops(input: Shape, offset: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """Two for each multiplication and addition of the convolution; the interpolation is not counted."""
    return 2 * offset[0] * offset[2] * offset[3] * math.prod(weight)


def backward_flops(*args: Any, **_: Any) -> int:
    """One product as long as the forward pass's for the columns, and one for the weight."""
    weight, grad_output, wanted = args[3], args[4], args[7]
    products = int(wanted[0] or wanted[1]) + int(wanted[2])
    return products * forward_flops((), grad_output, weight)


def register() -> None:
    """Have the formulas known to PyTorch's counter, now or when it is imported."""
    counter = sys.modules.get(_COUNTER)
    if counter is None:
        sys.meta_path.insert(0, _WhenImported())
    else:
        _hand_over(counter)


def _hand_over(counter: ModuleType) -> None:
    formula = getattr(counter, 'register_flop_formula', None)
    if formula is not None:  # torch >= 2.2
        operators = torch.ops.mmdeform_upgrade
        formula(operators.deform_conv2d)(forward_flops)
        formula(operators.deform_conv2d_backward)(backward_flops)


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds the counter as Python would have, and adds to it once it has run."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec.loader if spec is not None else None
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _hand_over(module)

            loader.exec_module = exec_module
        return spec
