# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Files to plain tensors, one module a container, without running anything that they hold."""

from .contents import drop_inert, read_checkpoint
from .kinds import kind_of, split_key
from .safetensors import META
from .unpickle import Inert
