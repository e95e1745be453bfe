# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Files to plain tensors, one module a container, without running anything that they hold."""

from .contents import META, Contents, container_of, read_checkpoint, read_tensors
from .files import remove_leftovers, written_whole
from .safetensors import read_safetensors, write_safetensors

__all__ = [
    'META',
    'Contents',
    'container_of',
    'read_checkpoint',
    'read_safetensors',
    'read_tensors',
    'remove_leftovers',
    'write_safetensors',
    'written_whole',
]
