# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The few modules that the frameworks lack.

Each file imports its framework and registers what it holds. A config that uses one of them names the file:
``custom_imports=dict(imports=['mmdeform_upgrade.models.ssd'])``.
"""
