# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A trained model and another camera: what the upgrade gains over every plain alternative, with controls and seeds."""
