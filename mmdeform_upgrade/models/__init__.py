# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The few modules that the frameworks lack. Each file imports its framework, so import the file, not the folder."""
