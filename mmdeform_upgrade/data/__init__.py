"""Composes detection and segmentation sets from cut-outs or procedural shapes."""

from .compose import compose, compose_shapes
from .scene import SceneOptions
from .shapes import SHAPE_CLASSES

__all__ = ['SHAPE_CLASSES', 'SceneOptions', 'compose', 'compose_shapes']
