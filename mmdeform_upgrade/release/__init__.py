# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Releases: published files, what a checkpoint is, deltas, configs for stock installations, and the way back."""

from .delta import apply_delta, make_delta
from .inspection import Inspection, inspect_checkpoint
from .publish import publish, published_checkpoint
from .rewrite import stock_config
