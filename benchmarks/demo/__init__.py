# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The demo: the main job on generated data."""
