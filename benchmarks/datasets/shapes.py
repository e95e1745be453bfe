# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Outlines of the procedural shape classes, as alpha masks.

Vocabulary: ``S`` is the side of a square canvas in pixels; outlines live in units where the
canvas spans [-1, 1] and ``y`` grows downwards.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

Outline = np.ndarray  # (M, 2) float, (x, y)

_SHIFT = 4  # cv2.fillPoly takes fixed-point coordinates with this many fractional bits


def _circle(radius: float, center: tuple[float, float] = (0.0, 0.0)) -> Outline:
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return np.stack([np.cos(turn), np.sin(turn)], axis=1) * radius + center


def _star(rng: np.random.Generator) -> list[Outline]:
    points = int(rng.integers(5, 8))
    inner = rng.uniform(0.42, 0.58)
    turn = np.arange(2 * points) * np.pi / points - np.pi / 2
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner) * 0.9
    return [np.stack([np.cos(turn), np.sin(turn)], axis=1) * radius[:, None]]


def _ring(rng: np.random.Generator) -> list[Outline]:
    return [_circle(0.85), _circle(0.85 * rng.uniform(0.4, 0.68))]


def _cross(rng: np.random.Generator) -> list[Outline]:
    arm = rng.uniform(0.2, 0.34)
    quarter = np.array([[arm, -0.85], [arm, -arm], [0.85, -arm]])
    turns = [np.array([[c, -s], [s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return [np.concatenate([quarter @ turn.T for turn in turns])]


def _worm(rng: np.random.Generator) -> list[Outline]:
    along = np.linspace(-0.8, 0.8, 40)
    sway = rng.uniform(0.25, 0.42)
    phase, waves = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 1.6)
    spine = np.stack([along, sway * np.sin(along / 0.8 * np.pi * waves + phase)], axis=1)
    tangent = np.gradient(spine, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    taper = np.sqrt(np.clip(1 - (along / 0.86) ** 6, 0.05, 1))[:, None]
    half = rng.uniform(0.11, 0.17) * taper * normal
    return [np.concatenate([spine + half, (spine - half)[::-1]])]


def _crescent(rng: np.random.Generator) -> list[Outline]:
    # The inner arc is the part of a shifted circle that lies inside the outer one.
    shift, inner = rng.uniform(0.35, 0.5), rng.uniform(0.66, 0.74)
    outer = _circle(0.88)
    cut = _circle(inner, (shift, 0.0))
    keep_outer = outer[np.linalg.norm(outer - (shift, 0.0), axis=1) >= inner]
    keep_cut = cut[np.linalg.norm(cut, axis=1) <= 0.88]
    by_angle = np.argsort(np.arctan2(keep_outer[:, 1], keep_outer[:, 0]) % (2 * np.pi))
    from_right = (keep_cut[:, 0] - shift, keep_cut[:, 1])
    back = np.argsort(-(np.arctan2(from_right[1], from_right[0]) % (2 * np.pi)))
    return [np.concatenate([keep_outer[by_angle], keep_cut[back]])]


def _arrow(rng: np.random.Generator) -> list[Outline]:
    shaft, head = rng.uniform(0.12, 0.22), rng.uniform(0.45, 0.62)
    neck = rng.uniform(-0.05, 0.25)
    upper = np.array([[-0.88, -shaft], [neck, -shaft], [neck, -head], [0.88, 0.0]])
    return [np.concatenate([upper, upper[-2::-1] * (1, -1)])]


def _blob(rng: np.random.Generator) -> list[Outline]:
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    waves = sum(rng.uniform(0, 0.14) * np.cos(k * turn + rng.uniform(0, 2 * np.pi)) for k in (2, 3))
    return [np.stack([np.cos(turn), np.sin(turn)], axis=1) * (0.72 * (1 + waves))[:, None]]


def _ellipse(rng: np.random.Generator) -> list[Outline]:
    return [_circle(0.88) * (1.0, rng.uniform(0.5, 0.9))]


def _polygon(rng: np.random.Generator) -> list[Outline]:
    corners = int(rng.integers(3, 6))
    turn = (np.arange(corners) + rng.uniform(-0.15, 0.15, corners)) * 2 * np.pi / corners
    return [np.stack([np.cos(turn), np.sin(turn)], axis=1) * 0.88]


_OUTLINES: dict[str, Callable[[np.random.Generator], list[Outline]]] = {
    'star': _star,
    'ring': _ring,
    'cross': _cross,
    'worm': _worm,
    'crescent': _crescent,
    'arrow': _arrow,
}
_DISTRACTORS = (_blob, _ellipse, _polygon)

SHAPE_CLASSES: tuple[str, ...] = tuple(_OUTLINES)
"""Names of the procedural shape classes; a label is an index into it."""


def _fill(outlines: Sequence[Outline], side: int) -> np.ndarray:
    fixed = [np.round((o + 1) * (side / 2) * 2**_SHIFT).astype(np.int32) for o in outlines]
    mask = np.zeros((side, side), np.uint8)
    cv2.fillPoly(mask, fixed, 255, cv2.LINE_AA, _SHIFT)  # even-odd: a second outline is a hole
    return mask


def shape_mask(name: str, rng: np.random.Generator, side: int = 160) -> np.ndarray:
    """Draws one upright, unwarped instance of a shape class.

    Args:
        name: One of ``SHAPE_CLASSES``.
        rng: Source of the shape's proportions.
        side: Canvas side ``S`` in pixels.

    Returns:
        Alpha mask, (S, S) uint8.
    """
    return _fill(_OUTLINES[name](rng), side)


def distractor_mask(rng: np.random.Generator, side: int = 160) -> np.ndarray:
    """Draws a shape of no class (blob, ellipse or convex polygon): (S, S) uint8."""
    return _fill(_DISTRACTORS[int(rng.integers(len(_DISTRACTORS)))](rng), side)
