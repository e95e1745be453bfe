# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What makes a run safe, for those who want it: ``RunGuardHook`` and what it is made of."""

from .checkpoints import BACKEND, WholeFiles, find_resumable, why_not_resumable
from .hook import RunGuardHook
from .lock import hold
