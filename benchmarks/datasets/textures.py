# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Procedural colour textures. All classes share them, so that none is told by its texture.

Things are vivid and backgrounds muted: what is a thing shows, of which class only its outline says.

Vocabulary: ``S`` is the side in pixels; images are (S, S, 3) uint8, BGR as OpenCV has it.
"""

import cv2
import numpy as np


def _noise(rng: np.random.Generator, side: int, coarsest: int) -> np.ndarray:
    """Sum of octaves of smooth noise, scaled to [0, 1]; (S, S) float32."""
    total = np.zeros((side, side), np.float32)
    cells, weight = coarsest, 1.0
    while cells < side // 2:
        grid = rng.standard_normal((cells, cells), dtype=np.float32)
        total += weight * cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        cells, weight = cells * 2, weight * rng.uniform(0.35, 0.75)
    low, high = total.min(), total.max()
    return (total - low) / max(high - low, 1e-6)


def _wave(rng: np.random.Generator, side: int) -> np.ndarray:
    """A periodic ramp in a random direction, in [0, 1]; (S, S) float32."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    angle, cycles = rng.uniform(0, np.pi), rng.uniform(3, 14)
    ripple = rng.uniform(0, 0.15) * _noise(rng, side, 3)
    along = np.cos(angle) * x + np.sin(angle) * y + ripple
    return (0.5 + 0.5 * np.sin(2 * np.pi * cycles * along)).astype(np.float32)


def _pattern(rng: np.random.Generator, side: int) -> np.ndarray:
    kind = int(rng.integers(5))
    if kind == 0:
        return _noise(rng, side, int(rng.integers(2, 8)))
    if kind == 1:
        return _wave(rng, side)
    if kind == 2:  # hard stripes
        return (_wave(rng, side) > rng.uniform(0.3, 0.7)).astype(np.float32)
    if kind == 3:  # checks or dots, by the sharpness of the product
        return np.clip((_wave(rng, side) * _wave(rng, side) - 0.25) * 4, 0, 1)
    return (_noise(rng, side, int(rng.integers(3, 10))) > 0.5).astype(np.float32)  # patches


def _color(rng: np.random.Generator, vivid: bool) -> np.ndarray:
    saturation, value = ((110, 255), (90, 255)) if vivid else ((10, 110), (40, 210))
    hsv = [rng.uniform(0, 180), rng.uniform(*saturation), rng.uniform(*value)]
    pixel = np.array([[hsv]]).astype(np.uint8)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def texture(rng: np.random.Generator, side: int, contrast: float = 0.3, vivid: bool = True) -> np.ndarray:
    """Makes a two- or three-colour texture with shading and grain.

    Args:
        rng: Source of pattern and colours.
        side: Side ``S`` in pixels.
        contrast: Upper bound of how far the pattern leads from the first colour, up to 1.
        vivid: Whether colours are strong (things) or muted (backgrounds).

    Returns:
        BGR image, (S, S, 3) uint8.
    """
    first, second, third = (_color(rng, vivid) for _ in range(3))
    mix = (_pattern(rng, side) * rng.uniform(0.1, contrast))[..., None]
    image = first * (1 - mix) + second * mix
    if rng.random() < 0.5:
        over = (_pattern(rng, side) * rng.uniform(0.1, 0.7 * contrast))[..., None]
        image = image * (1 - over) + third * over
    shade = 0.65 + 0.6 * _noise(rng, side, 2)[..., None]
    grain = rng.standard_normal((side, side, 1), dtype=np.float32) * rng.uniform(0, 8)
    return np.clip(image * shade + grain, 0, 255).astype(np.uint8)


def background_texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Makes a background: a texture, often with patches of other ones; (S, S, 3) uint8."""
    image = texture(rng, side, 0.5, vivid=False)
    for _ in range(int(rng.integers(0, 3))):
        region = _noise(rng, side, int(rng.integers(2, 4))) > rng.uniform(0.5, 0.75)
        image = np.where(region[..., None], texture(rng, side, 0.5, vivid=False), image)
    return image
