# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Geometric warps of a cut-out: rotation, stretch, shear, perspective, bend and elastic noise.

A warp is an inverse map: where each pixel of the result looks in the cut-out. Units are
half-sides of the (square-padded) cut-out, so that [-1, 1] spans it; ``S`` is its side in pixels.
"""

import cv2
import numpy as np

_MARGIN = 1.7  # half-side of the working canvas: room for what bends out of [-1, 1]


def pad_square(image: np.ndarray) -> np.ndarray:
    """Centres (H, W, 4) on a transparent square (S, S, 4), S = max(H, W)."""
    height, width = image.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side, image.shape[2]), image.dtype)
    square[top : top + height, left : left + width] = image
    return square


def crop_visible(image: np.ndarray) -> np.ndarray:
    """Cuts (H, W, 4) down to the box of what is at least half opaque; as is where nothing is."""
    rows = np.flatnonzero((image[..., 3] >= 128).any(axis=1))
    cols = np.flatnonzero((image[..., 3] >= 128).any(axis=0))
    if rows.size == 0:
        return image
    return image[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


def _premultiplied(image: np.ndarray) -> np.ndarray:
    """Multiplies colours by alpha, so that mixing pixels lets nothing bleed in from outside."""
    mixed = image.astype(np.float32)
    mixed[..., :3] *= mixed[..., 3:] / 255
    return mixed


def _straight(mixed: np.ndarray) -> np.ndarray:
    alpha = mixed[..., 3:]
    color = mixed[..., :3] * (255 / np.maximum(alpha, 1e-3))
    return np.clip(np.round(np.dstack([color, alpha])), 0, 255).astype(np.uint8)


def resize_cutout(image: np.ndarray, long_side: float) -> np.ndarray:
    """Scales a cut-out (H, W, 4) uint8 to a long side in pixels."""
    height, width = image.shape[:2]
    scale = long_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return _straight(cv2.resize(_premultiplied(image), size, interpolation=method))


def _linear(rng: np.random.Generator, max_angle: float, strength: float) -> np.ndarray:
    angle = rng.uniform(-max_angle, max_angle)
    cos, sin = np.cos(angle), np.sin(angle)
    stretch = np.exp(strength * rng.uniform(-0.22, 0.22))
    shear = np.array([[1.0, strength * rng.uniform(-0.35, 0.35)], [0.0, 1.0]])
    return np.array([[cos, -sin], [sin, cos]]) @ np.diag([stretch, 1 / stretch]) @ shear


def _elastic(rng: np.random.Generator, side: int) -> np.ndarray:
    """Smooth random displacement, (2, S, S); slopes stay well below 1, so it cannot fold."""
    grids = rng.uniform(-1, 1, (2, 5, 5)).astype(np.float32) * rng.uniform(0.02, 0.11)
    return np.stack([cv2.resize(g, (side, side), interpolation=cv2.INTER_CUBIC) for g in grids])


def _inverse_map(rng: np.random.Generator, side: int, max_angle: float, strength: float) -> np.ndarray:
    """Coordinates in the cut-out for each canvas pixel; (2, S, S) float32, (x, y)."""
    axis = ((np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1) * _MARGIN
    x, y = np.meshgrid(axis, axis)
    x, y = np.stack([x, y]) + strength * _elastic(rng, side)
    bend_x, bend_y = strength * rng.uniform(-0.4, 0.4, 2) * (rng.random(2) < 0.6)
    x = x + bend_x * (y * y - 0.33)  # each line shifts along itself: invertible for any strength
    y = y + bend_y * (x * x - 0.33)
    (a, b), (c, d) = _linear(rng, max_angle, strength)
    x, y = a * x + b * y, c * x + d * y
    tilt_x, tilt_y = strength * rng.uniform(-0.16, 0.16, 2)
    depth = 1 + tilt_x * np.clip(x, -2, 2) + tilt_y * np.clip(y, -2, 2)
    return np.stack([x, y]).astype(np.float32) / depth.astype(np.float32)


def warp_cutout(
    image: np.ndarray, rng: np.random.Generator, max_angle: float = np.pi, strength: float = 1.0
) -> np.ndarray:
    """Applies one random smooth warp.

    Args:
        image: BGRA cut-out, (H, W, 4) uint8.
        rng: Source of the warp.
        max_angle: Bound of the rotation, in radians.
        strength: Scales everything but the rotation; 1 is the most that never folds a picture.

    Returns:
        BGRA cut-out cropped to what is visible of it, (H', W', 4) uint8.
    """
    square = _premultiplied(pad_square(image))
    side = square.shape[0]
    canvas = int(np.ceil(side * _MARGIN))
    pixels = (_inverse_map(rng, canvas, max_angle, strength) + 1) * (side / 2) - 0.5
    warped = cv2.remap(square, pixels[0], pixels[1], cv2.INTER_LINEAR, borderValue=(0, 0, 0, 0))
    return crop_visible(_straight(warped))
