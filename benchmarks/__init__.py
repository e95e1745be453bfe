# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The evidence: data sets, comparisons, sweeps and the demo. It imports the package, never the reverse."""
