# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The few modules that the frameworks lack. Each file imports its framework, when a config first names what it holds."""
