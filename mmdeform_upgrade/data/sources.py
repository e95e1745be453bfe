"""Where cut-outs and backgrounds come from: procedural shapes here, files in ``cutouts``.

A source belongs to one split. Every draw takes its random generator, so a source keeps no state.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .shapes import SHAPE_CLASSES, distractor_mask, shape_mask
from .textures import background_texture, texture


class Source(Protocol):
    """What the composer needs of a split's material; images are uint8, BGR(A)."""

    @property
    def classes(self) -> Sequence[str]:
        """Class names; a label is an index into them."""

    def background(self, rng: np.random.Generator, side: int) -> np.ndarray:
        """Returns a background, (side, side, 3)."""

    def cutout(self, rng: np.random.Generator, label: int) -> np.ndarray:
        """Returns a cut-out of a class, (H, W, 4), cropped to what is visible of it."""

    def distractor(self, rng: np.random.Generator) -> np.ndarray:
        """Returns a cut-out of no class, (H, W, 4)."""

    def max_angle(self, label: int | None) -> float:
        """Returns the largest rotation, in radians, a warp may give a label (or distractor)."""


class ShapeSource:
    """Textured procedural shapes on procedural backgrounds; needs no files.

    Args:
        side: Side ``S`` in pixels of a cut-out before it is warped and scaled.
    """

    _CONTRAST = 0.5  # more, and a pattern breaks the shape up until people cannot see it either

    classes: Sequence[str] = SHAPE_CLASSES

    def __init__(self, side: int = 160) -> None:
        self._side = side

    def background(self, rng: np.random.Generator, side: int) -> np.ndarray:
        """Returns a patchwork of textures, (side, side, 3)."""
        return background_texture(rng, side)

    def cutout(self, rng: np.random.Generator, label: int) -> np.ndarray:
        """Returns a textured shape, (S, S, 4)."""
        return self._textured(shape_mask(SHAPE_CLASSES[label], rng, self._side), rng)

    def distractor(self, rng: np.random.Generator) -> np.ndarray:
        """Returns a textured blob, ellipse or polygon, (S, S, 4)."""
        return self._textured(distractor_mask(rng, self._side), rng)

    def max_angle(self, label: int | None) -> float:
        """Returns a half turn: no shape class depends on which way is up."""
        return np.pi

    def _textured(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.dstack([texture(rng, self._side, self._CONTRAST), mask])
