# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Where cut-outs and backgrounds come from: procedural shapes or files.

A source belongs to one split. Every draw takes its random generator, so a source keeps no state.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from .files import load_cutout, load_photo
from .shapes import SHAPE_CLASSES, distractor_mask, shape_mask
from .textures import background_texture, texture
from .warps import resize_cutout


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


class ShapeSource:
    """Textured procedural shapes on procedural backgrounds; needs no files.

    Args:
        side: Side ``S`` in pixels of a cut-out before it is warped and scaled.
    """

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

    def _textured(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.dstack([texture(rng, self._side), mask])


class FileSource:
    """One split's cut-outs and backgrounds from files, read once and kept in memory.

    Args:
        cutouts: Files by class, in the order of the labels.
        distractors: Cut-outs of other things; may be empty.
        backgrounds: Background photos.
        size: Side of the pictures to compose, in pixels: nothing much larger is kept.

    Raises:
        DataError: A file cannot be read, or a cut-out has no usable alpha channel.
    """

    _SOFTEST = 48  # pixels of long side a cut-out may be reduced to before it is scaled

    def __init__(
        self,
        cutouts: Mapping[str, Sequence[Path]],
        distractors: Sequence[Path],
        backgrounds: Sequence[Path],
        size: int,
    ) -> None:
        self.classes: Sequence[str] = tuple(cutouts)
        side = 2 * size
        self._cutouts = [[load_cutout(f, side) for f in files] for files in cutouts.values()]
        self._distractors = [load_cutout(f, side) for f in distractors]
        self._backgrounds = [load_photo(f, 3 * size) for f in backgrounds]

    def background(self, rng: np.random.Generator, side: int) -> np.ndarray:
        """Returns a mirrored or plain square crop of a photo, (side, side, 3)."""
        photo = self._backgrounds[int(rng.integers(len(self._backgrounds)))]
        height, width = photo.shape[:2]
        extent = max(1, round(min(height, width) * rng.uniform(0.35, 1)))
        top = int(rng.integers(height - extent + 1))
        left = int(rng.integers(width - extent + 1))
        crop = photo[top : top + extent, left : left + extent]
        method = cv2.INTER_AREA if extent > side else cv2.INTER_LINEAR
        crop = cv2.resize(crop, (side, side), interpolation=method)
        return crop[:, ::-1] if rng.random() < 0.5 else crop

    def cutout(self, rng: np.random.Generator, label: int) -> np.ndarray:
        """Returns a cut-out of a class, (H, W, 4), at times reduced."""
        files = self._cutouts[label]
        return self._reduced(files[int(rng.integers(len(files)))], rng)

    def distractor(self, rng: np.random.Generator) -> np.ndarray:
        """Returns something else cut out, or a shape filled with background, (H, W, 4)."""
        if self._distractors and rng.random() < 0.6:
            return self._reduced(self._distractors[int(rng.integers(len(self._distractors)))], rng)
        side = 128
        return np.dstack([self.background(rng, side), distractor_mask(rng, side)])

    def _reduced(self, cutout: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # Whole classes may come in low resolution. If sharp ones were not made blurred as well,
        # blur alone would tell the class.
        longest = max(cutout.shape[:2])
        target = rng.uniform(self._SOFTEST, max(longest, self._SOFTEST))
        if rng.random() < 0.5 or target >= longest:
            return cutout
        return resize_cutout(cutout, target)
