# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A run's folder: one run at a time, checkpoints that are whole, and the one to go on from."""

from .lock import held, hold, release
from .resuming import find_resumable, last_saved, why_not_resumable
from .storage import BACKEND, WholeFiles

__all__ = ['BACKEND', 'WholeFiles', 'find_resumable', 'held', 'hold', 'last_saved', 'release', 'why_not_resumable']
