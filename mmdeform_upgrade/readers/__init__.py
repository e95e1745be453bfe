# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Files to plain tensors, one module a container, without running anything that they hold."""
from .pytorch import read_checkpoint

__all__ = ['read_checkpoint']
