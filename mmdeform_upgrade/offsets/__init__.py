# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The offset branches by themselves: their optimizer, training nothing else, and adapters."""

from .adapters import disable_adapter, load_adapter, set_adapter
from .optimizer import OffsetOptimizer, split_offsets
from .step_limit import StepLimit
from .training import train_offsets_
