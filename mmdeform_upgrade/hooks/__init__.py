# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Hooks for MMEngine's runners: the upgrade's checkpoint, and runs that go on exactly after a resume."""
from .exact_resume import ExactResumeHook
from .upgrade import META_KEY, DeformUpgradeHook, upgraded_layers

__all__ = ['META_KEY', 'DeformUpgradeHook', 'ExactResumeHook', 'upgraded_layers']
