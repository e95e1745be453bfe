# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""All that knows MMEngine's runner and registries."""
