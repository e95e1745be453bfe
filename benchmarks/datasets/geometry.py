# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Changes of geometry: what another lens, distance, angle or aspect does to a picture.

A *view* says, for one picture, where each of its pixels looks in the scene that it was taken of; a *map* is a named
recipe that draws views. Positions are (x, y) in pixels from the picture's centre; a *magnification* of 2 shows things
twice as large as the scene has them.

``fisheye`` is the equidistant projection that Deng et al. 2019 (arXiv 1801.00708) and Playout et al. 2021
(arXiv 2102.10191) apply to Cityscapes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

IGNORED = 255
"""Label of pixels that look outside the scene."""

Points = np.ndarray
"""(..., 2) float, (x, y) from the centre."""


@dataclass(frozen=True)
class View:
    """One picture's geometry.

    Attributes:
        to_scene: positions in the picture to positions in the scene.
        to_picture: the way back.
    """

    to_scene: Callable[[Points], Points]
    to_picture: Callable[[Points], Points]

    def grid(self, size: tuple[int, int], step: float = 1.0) -> np.ndarray:
        """Where the pixels of a picture of ``size`` (height, width) look in the scene, (H/step, W/step, 2)."""
        return self.to_scene(_pixels(size, step)).astype(np.float32)

    def jacobian(self, size: tuple[int, int], step: float = 1.0, epsilon: float = 0.5) -> np.ndarray:
        """Derivative of the scene's position by the picture's, (H/step, W/step, 2, 2); rows are the scene's x, y."""
        points = _pixels(size, step)
        columns = []
        for axis in range(2):
            shift = np.zeros(2)
            shift[axis] = epsilon
            columns.append((self.to_scene(points + shift) - self.to_scene(points - shift)) / (2 * epsilon))
        return np.stack(columns, axis=-1).astype(np.float32)


def _pixels(size: tuple[int, int], step: float) -> Points:
    height, width = size
    y = (np.arange(round(height / step)) + 0.5) * step - height / 2
    x = (np.arange(round(width / step)) + 0.5) * step - width / 2
    return np.stack(np.meshgrid(x, y), axis=-1)


def _linear(matrix: np.ndarray) -> View:
    """A view whose pictures are ``matrix`` times the scene."""
    inverse = np.linalg.inv(matrix)
    return View(lambda points: points @ inverse.T, lambda points: points @ matrix.T)


def identity(size: tuple[int, int], rng: np.random.Generator) -> View:
    """The scene as it is."""
    return _linear(np.eye(2))


def zoom(size: tuple[int, int], rng: np.random.Generator, magnification: float = 2.0) -> View:
    """Another distance, or focal length."""
    return _linear(np.eye(2) * magnification)


def aspect(size: tuple[int, int], rng: np.random.Generator, ratio: float = 2.5) -> View:
    """Pictures stretched horizontally by the root of ``ratio`` and squeezed vertically by as much."""
    return _linear(np.diag([ratio**0.5, ratio**-0.5]))


def mixed(size: tuple[int, int], rng: np.random.Generator, low: float = 0.8, high: float = 2.8) -> View:
    """Another distance in each picture, the magnification drawn log-uniformly."""
    return _linear(np.eye(2) * np.exp(rng.uniform(np.log(low), np.log(high))))


def anisotropic(
    size: tuple[int, int],
    rng: np.random.Generator,
    small: tuple[float, float] = (0.8, 1.3),
    large: tuple[float, float] = (1.8, 2.8),
) -> View:
    """Pictures stretched along a direction of their own; magnifications along and across it are drawn uniformly."""
    angle = rng.uniform(0, np.pi)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return _linear(rotation @ np.diag([rng.uniform(*large), rng.uniform(*small)]) @ rotation.T)


def perspective(size: tuple[int, int], rng: np.random.Generator, top: float = 0.8, bottom: float = 2.6) -> View:
    """A camera tilted over a plane: horizontal magnification from ``top`` to ``bottom`` of the picture."""
    middle = (top + bottom) / 2
    slope = (bottom - top) / (bottom + top) / (size[0] / 2)

    def to_scene(points: Points) -> Points:
        return points / (middle * (1 + slope * points[..., 1:]))

    def to_picture(points: Points) -> Points:
        y = middle * points[..., 1:] / (1 - slope * middle * points[..., 1:])
        return points * middle * (1 + slope * y)

    return View(to_scene, to_picture)


def fisheye(size: tuple[int, int], rng: np.random.Generator, middle: float = 2.6, rim: float = 0.8) -> View:
    """An equidistant lens: radial magnification ``middle`` at the centre and ``rim`` at half the longer side."""
    if middle <= rim:
        raise ValueError(f'fisheye: middle={middle:g} must be above rim={rim:g}')
    angle = np.arccos((rim / middle) ** 0.5)  # the derivative of tan is 1 / cos^2
    focal = max(size) / 2 / angle
    return View(
        lambda points: _radial(points, lambda r: focal / middle * np.tan(np.minimum(r / focal, 1.55))),
        lambda points: _radial(points, lambda r: focal * np.arctan(r / focal * middle)),
    )


def _radial(points: Points, function: Callable[[np.ndarray], np.ndarray]) -> Points:
    radius = np.maximum(np.linalg.norm(points, axis=-1, keepdims=True), 1e-9)
    return points * function(radius) / radius


MAPS: dict[str, Callable[..., View]] = {
    function.__name__: function for function in (identity, zoom, aspect, perspective, fisheye, anisotropic, mixed)
}


def parameters(name: str) -> dict[str, object]:
    """A map's parameters and their defaults."""
    return {
        key: value.default
        for key, value in inspect.signature(MAPS[name]).parameters.items()
        if value.default is not inspect.Parameter.empty
    }


def warp_picture(scene: np.ndarray, view: View, size: tuple[int, int], scale: float = 1.0) -> np.ndarray:
    """Take a picture of a scene through a view.

    Args:
        scene: (H, W, 3) uint8.
        view: the geometry.
        size: (height, width) of the picture.
        scale: pixels of ``scene`` for one of the view's.

    Returns:
        (height, width, 3) uint8; filtered where the picture is smaller than the scene, black outside of it.
    """
    grid = view.grid(size) * scale
    spacing = np.hypot(*np.gradient(grid[..., 0])), np.hypot(*np.gradient(grid[..., 1]))
    fine = int(np.clip(np.ceil(np.percentile(np.maximum(*spacing), 95)), 1, 4))
    points = view.grid(size, 1 / fine) * scale
    sampled = cv2.remap(scene, *_in_scene(points, scene), cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return sampled if fine == 1 else cv2.resize(sampled, size[::-1], interpolation=cv2.INTER_AREA)


def warp_labels(labels: np.ndarray, view: View, size: tuple[int, int], scale: float = 1.0) -> np.ndarray:
    """The labels (H, W) uint8 of :func:`warp_picture`'s picture, nearest; ``IGNORED`` where it shows no scene."""
    x, y = _in_scene(view.grid(size) * scale, labels)
    return cv2.remap(labels, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORED)


def _in_scene(points: np.ndarray, scene: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """OpenCV's coordinates: its pixel 0 has its centre at 0."""
    height, width = scene.shape[:2]
    x = np.clip(points[..., 0] + width / 2 - 0.5, -1e4, 1e4)
    y = np.clip(points[..., 1] + height / 2 - 0.5, -1e4, 1e4)
    return x.astype(np.float32), y.astype(np.float32)
