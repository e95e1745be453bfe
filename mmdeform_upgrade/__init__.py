# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Trained convolutions become deformable ones, in place, computing the same until they are fine-tuned."""

from importlib.util import find_spec

from .checkpoint import load_baseline
from .config import shorten_schedule, upgrade_config
from .errors import UpgradeError
from .layers import ZeroOffsetDCN
from .offsets import OffsetOptimizer, disable_adapter, load_adapter, set_adapter, split_offsets, train_offsets_
from .ops import deform_conv2d
from .targets import find_targets
from .upgrade import UpgradeReport, revert_, upgrade_

__version__ = '0.1.0'

__all__ = [
    'OffsetOptimizer',
    'UpgradeError',
    'UpgradeReport',
    'ZeroOffsetDCN',
    'deform_conv2d',
    'disable_adapter',
    'find_targets',
    'load_adapter',
    'load_baseline',
    'revert_',
    'set_adapter',
    'shorten_schedule',
    'split_offsets',
    'train_offsets_',
    'upgrade_',
    'upgrade_config',
]

if find_spec('mmengine') is not None:  # `upgrade_` works on any torch module, without it, too
    from .mm import plugin as _plugin  # noqa: F401  registers the plugin
