# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Hooks for MMEngine's runners: the upgrade's checkpoint, exact resumes, and a log of the offsets."""
from .bfloat16 import BFloat16Hook
from .exact_resume import ExactResumeHook
from .offset_logger import OffsetLoggerHook
from .upgrade import META_KEY, DeformUpgradeHook, upgraded_layers

__all__ = ['META_KEY', 'BFloat16Hook', 'DeformUpgradeHook', 'ExactResumeHook', 'OffsetLoggerHook', 'upgraded_layers']
