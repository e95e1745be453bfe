# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Hooks for MMEngine's runners: the upgrade's checkpoint, what keeps a run from losing anything, a log of offsets."""

from .bfloat16 import BFloat16Hook
from .exact_resume import ExactResumeHook
from .finite import FiniteCheckHook
from .network import upgraded_layers
from .offset_logger import OffsetLoggerHook
from .offsets_first import OffsetsFirstHook
from .upgrade import META_KEY, DeformUpgradeHook
from .work_dir import WorkDirHook

__all__ = [
    'META_KEY',
    'BFloat16Hook',
    'DeformUpgradeHook',
    'ExactResumeHook',
    'FiniteCheckHook',
    'OffsetLoggerHook',
    'OffsetsFirstHook',
    'WorkDirHook',
    'upgraded_layers',
]
