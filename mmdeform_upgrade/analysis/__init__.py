# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Numbers and pictures about upgrades; ``plots`` is the only module that draws."""
