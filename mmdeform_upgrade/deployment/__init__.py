# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Upgraded networks outside of PyTorch."""

from .onnx import OPSETS, export_onnx
from .parts import PARTS, Exportable, part_of

__all__ = ['OPSETS', 'PARTS', 'Exportable', 'export_onnx', 'part_of']
