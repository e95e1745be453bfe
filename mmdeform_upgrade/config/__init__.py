# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Config to config, and to the text of a file: pure functions, none of which needs a runner."""

from .lengths import Length
from .schedule import describe_schedule, shorten_schedule
from .settings import find_config, read_config
from .upgrade import (
    BUILDER,
    HOOK,
    SCHEME,
    TRAIN_OFFSETS,
    control_changes,
    retrain_changes,
    upgrade_changes,
    upgrade_config,
)
