# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Deformable convolution (DCNv1 and v2) for any device: one function, several backends."""

from . import flops
from .functional import BACKENDS, deform_conv2d

__all__ = ['BACKENDS', 'deform_conv2d', 'flops']
