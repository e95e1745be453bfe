# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Foreign checkpoints: one module a family, each a table of names and pure functions on state dicts."""
from .base import Format, Imported

__all__ = ['Format', 'Imported']
