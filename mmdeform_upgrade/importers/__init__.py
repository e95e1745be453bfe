# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Foreign checkpoints: one module a family, each a table of names and pure functions on state dicts."""

from .formats import OWN_NAMES, import_state_dict, matching_formats
from .openmmlab import dataset_meta
from .rules import Imported
