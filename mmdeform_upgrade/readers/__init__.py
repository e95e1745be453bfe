# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Files to plain tensors, one module a container, without running anything that they hold."""

from .contents import drop_inert, read_checkpoint, read_contents
from .files import remove_leftovers, written_whole
from .safetensors import META, read_safetensors, write_safetensors
from .sniff import split_key
from .unpickle import Inert

__all__ = [
    'META',
    'Inert',
    'drop_inert',
    'read_checkpoint',
    'read_contents',
    'read_safetensors',
    'remove_leftovers',
    'split_key',
    'write_safetensors',
    'written_whole',
]
