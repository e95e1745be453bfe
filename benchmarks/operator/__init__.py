# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The operator's benchmark."""
