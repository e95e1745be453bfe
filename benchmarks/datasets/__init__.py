# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Composes detection and segmentation sets from cut-outs or procedural shapes."""

from .debian import collect_debian_cutouts
from .recipes import SHAPE_OPTIONS, compose_cutouts, compose_shapes
from .scene import SceneOptions
from .shapes import SHAPE_CLASSES

__all__ = [
    'SHAPE_CLASSES',
    'SHAPE_OPTIONS',
    'SceneOptions',
    'collect_debian_cutouts',
    'compose_cutouts',
    'compose_shapes',
]
