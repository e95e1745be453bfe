# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Experiments that compare an upgrade with what it claims to beat, over several seeds."""

from .report import summarise
from .runs import ARMS, Experiment, Result, read_result, run_arm

__all__ = ['ARMS', 'Experiment', 'Result', 'read_result', 'run_arm', 'summarise']
