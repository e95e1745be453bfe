# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""MMEngine's ``get_model_complexity_info`` on upgraded networks.

A tracer sees plain operations, of which MMEngine knows the convolution that predicts offsets and the products; the
interpolation is added here. A layer of M input and N output channels, k*k taps and L output positions then counts

    parameters  k*k*M*N + N  +  2*k*k * M * k*k + 2*k*k
    flops       (k*k*M*N  +  2*k*k * M * k*k  +  4 * k*k*M) * L

(paper, section 3; multiplications with their additions are one, as MMEngine counts; 4 corners a sample).
"""

from __future__ import annotations

import math
from typing import Any, List

from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import get_shape


def _interpolation_flops(inputs: List[Any], outputs: List[Any]) -> int:
    """One for each corner of each sample and channel."""
    table, corners = get_shape(inputs[0]), get_shape(inputs[1])
    return math.prod(corners) * table[-1]


def register_handles() -> None:
    """Have MMEngine count the interpolation; a handle that somebody else has set stays."""
    handles = getattr(complexity_analysis, '_DEFAULT_SUPPORTED_FLOP_OPS', {})
    handles.setdefault('aten::embedding_bag', _interpolation_flops)
