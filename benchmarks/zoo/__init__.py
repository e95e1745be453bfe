# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The promise held against the frameworks' own model zoos: which of their configs can be upgraded, and how exactly.

``configs`` finds and loads them, ``network`` runs parts of a network, ``check`` upgrades one config and compares,
``reasons`` says why one could not be checked, ``sweep`` goes through all of them, ``summary`` counts.
"""
