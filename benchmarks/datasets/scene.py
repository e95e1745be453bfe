# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Composes one picture: background, cut-outs that may hide one another, and what stays visible.

Vocabulary: ``S`` is the picture's side in pixels; a *layer* is a cut-out placed on the picture.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .sources import Source
from .warps import crop_visible, resize_cutout, warp_cutout


@dataclass(frozen=True)
class SceneOptions:
    """How pictures are composed.

    Attributes:
        size: Side of the square picture, in pixels.
        objects: Least and most annotated objects asked for; crowded pictures may get fewer.
        distractors: Least and most unannotated objects.
        object_size: Least and greatest long side of an object, as a fraction of ``size``.
        warp: Whether cut-outs are rotated and warped; otherwise only scaled and mirrored.
        max_angle: Bound of the rotation in degrees; only with ``warp``.
        warp_strength: Scales bend, shear, perspective and elastic noise, up to 1; only with ``warp``.
        min_visible: No object is placed where less than this fraction of any would be seen.
        difficult_below: An object of which less than this fraction is seen is ``difficult``.
        jpeg_quality: Least and greatest JPEG quality.
        border: Width in pixels of the ignored (255) band in segmentation masks; 0 for none.
    """

    size: int = 320
    objects: tuple[int, int] = (1, 4)
    distractors: tuple[int, int] = (0, 3)
    object_size: tuple[float, float] = (0.2, 0.6)
    warp: bool = True
    max_angle: float = 30
    warp_strength: float = 1.0
    min_visible: float = 0.3
    difficult_below: float = 0.5
    jpeg_quality: tuple[int, int] = (60, 95)
    border: int = 0


@dataclass(frozen=True)
class Instance:
    """An annotated object: its label, visible mask (S, S) bool and visible fraction."""

    label: int
    mask: np.ndarray
    visible: float
    difficult: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight bounds (x0, y0, x1, y1) of the visible mask in pixels; x1 and y1 exclusive."""
        rows = np.flatnonzero(self.mask.any(axis=1))
        cols = np.flatnonzero(self.mask.any(axis=0))
        return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True)
class Scene:
    """A composed picture (S, S, 3) uint8 BGR and its annotated objects, back to front."""

    image: np.ndarray
    instances: list[Instance]
    jpeg_quality: int


@dataclass
class _Layer:
    label: int | None  # None for a distractor
    image: np.ndarray  # (S, S, 4) float32, alpha in [0, 1]
    area: int  # pixels of the whole cut-out, also of what lies outside the picture

    @property
    def mask(self) -> np.ndarray:
        return self.image[..., 3] >= 0.5


_TRIES = 12  # positions tried before an object is left out


def _feather(cutout: np.ndarray, sigma: float) -> np.ndarray:
    """Softens the alpha inwards, as colours are only known inside; (H, W, 4) float32."""
    soft = np.pad(cutout, ((1, 1), (1, 1), (0, 0))).astype(np.float32)
    soft[..., 3] /= 255
    soft[..., 3] = np.minimum(soft[..., 3], cv2.GaussianBlur(soft[..., 3], (0, 0), sigma))
    return soft


def _prepare(cutout: np.ndarray, look: np.random.Generator, target: float, mirror: bool) -> np.ndarray:
    """Scales to a long side of ``target`` pixels, varies the light, feathers; float32."""
    cutout = resize_cutout(crop_visible(cutout), target)
    if mirror:
        cutout = cutout[:, ::-1]
    soft = _feather(cutout, look.uniform(0.3, 0.9))
    color = soft[..., :3] * look.uniform(0.8, 1.15) + look.uniform(-15, 15)
    soft[..., :3] = np.clip(color, 0, 255)
    return soft


def _place(cutout: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Puts a cut-out at a random place, at most 30% of it outside; (S, S, 4) float32."""
    layer = np.zeros((size, size, 4), np.float32)
    spans = []
    for extent in cutout.shape[:2]:
        low, high = sorted((-0.3 * extent, size - 0.7 * extent))
        start = round(rng.uniform(low, high))
        spans.append((max(start, 0), min(start + extent, size), start))
    (top, bottom, y), (left, right, x) = spans
    layer[top:bottom, left:right] = cutout[top - y : bottom - y, left - x : right - x]
    return layer


def _visible_masks(layers: list[_Layer]) -> list[np.ndarray]:
    """What each layer shows under those above it; masks (S, S) bool that never overlap."""
    covered = np.zeros(layers[0].mask.shape, bool) if layers else np.zeros(0, bool)
    masks = []
    for layer in reversed(layers):
        masks.append(layer.mask & ~covered)
        covered |= layer.mask
    return masks[::-1]


def _all_seen(layers: list[_Layer], min_visible: float) -> bool:
    masks = _visible_masks(layers)
    return all(
        layer.label is None or mask.sum() >= max(1, min_visible * layer.area)
        for layer, mask in zip(layers, masks, strict=True)
    )


def _add_layer(layers: list[_Layer], label: int | None, source: Source, options: SceneOptions, seed: list[int]) -> None:
    """Adds one cut-out on top, or nothing where no place leaves everything seen well enough."""
    # One generator a purpose: the same set without warps keeps its objects, colours and places.
    look, warp, place = (np.random.default_rng([*seed, purpose]) for purpose in range(3))
    low, high = options.object_size
    target = options.size * float(np.exp(look.uniform(np.log(low), np.log(high))))
    mirror = bool(look.random() < 0.5)
    cutout = source.distractor(look) if label is None else source.cutout(look, label)
    if options.warp:
        angle = float(np.deg2rad(options.max_angle))
        cutout = warp_cutout(cutout, warp, angle, options.warp_strength)
    soft = _prepare(cutout, look, target, mirror)
    area = int((soft[..., 3] >= 0.5).sum())
    for _ in range(_TRIES):
        layer = _Layer(label, _place(soft, place, options.size), area)
        if _all_seen([*layers, layer], options.min_visible):
            layers.append(layer)
            return


def _paint(background: np.ndarray, layers: list[_Layer]) -> np.ndarray:
    image = background.astype(np.float32)
    for layer in layers:
        alpha = layer.image[..., 3:]
        image = image * (1 - alpha) + layer.image[..., :3] * alpha
    return image


def compose_scene(source: Source, options: SceneOptions, seed: list[int]) -> Scene:
    """Composes one picture.

    Args:
        source: Material of the picture's split.
        options: How to compose.
        seed: Entropy of this picture: the same seed gives the same picture.

    Returns:
        The picture and its annotated objects.
    """
    rng = np.random.default_rng(seed)
    quality = int(rng.integers(options.jpeg_quality[0], options.jpeg_quality[1] + 1))
    count = rng.integers(options.objects[0], options.objects[1] + 1)
    labels: list[int | None] = rng.integers(len(source.classes), size=count).tolist()
    labels += [None] * int(rng.integers(options.distractors[0], options.distractors[1] + 1))
    order = rng.permutation(len(labels))
    layers: list[_Layer] = []
    for i in order:
        _add_layer(layers, labels[i], source, options, [*seed, int(i)])
    image = _paint(source.background(rng, options.size), layers)
    image += rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0, 5)
    instances = [
        Instance(layer.label, mask, seen := mask.sum() / layer.area, seen < options.difficult_below)
        for layer, mask in zip(layers, _visible_masks(layers), strict=True)
        if layer.label is not None
    ]
    return Scene(np.clip(np.round(image), 0, 255).astype(np.uint8), instances, quality)
