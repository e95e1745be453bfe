# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What is hidden is not annotated, and nothing annotated is hidden."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from benchmarks.datasets import SHAPE_CLASSES, SceneOptions
from benchmarks.datasets.scene import _Layer, _visible_masks, compose_scene
from benchmarks.datasets.shapes import distractor_mask, shape_mask
from benchmarks.datasets.sources import ShapeSource
from benchmarks.datasets.warps import crop_visible, resize_cutout, warp_cutout

OPTIONS = SceneOptions(size=96)


class Squares:
    """Opaque squares: red objects, blue distractors, on black."""

    classes = ('square',)

    def background(self, rng, side):
        return np.zeros((side, side, 3), np.uint8)

    def cutout(self, rng, label):
        return self._square((0, 0, 255))

    def distractor(self, rng):
        return self._square((255, 0, 0))

    def _square(self, color):
        return np.dstack([np.full((40, 40, 3), color, np.uint8), np.full((40, 40), 255, np.uint8)])


def layer(label, box):
    image = np.zeros((20, 20, 4), np.float32)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1, 3] = 1
    return _Layer(label, image, (x1 - x0) * (y1 - y0))


def test_only_what_no_later_layer_covers_is_visible():
    below, above = _visible_masks([layer(0, (2, 2, 10, 10)), layer(None, (6, 0, 20, 20))])
    expected = np.zeros((20, 20), bool)
    expected[2:10, 2:6] = True
    assert np.array_equal(below, expected)
    assert above.sum() == 14 * 20


def test_masks_are_where_the_object_shows_in_the_picture():
    options = replace(OPTIONS, warp=False, objects=(2, 4), distractors=(2, 4))
    hidden = 0
    for i in range(12):
        scene = compose_scene(Squares(), options, [0, i])
        red = scene.image[..., 2].astype(int) - scene.image[..., 0] > 100
        seen = np.zeros_like(red)
        for instance in scene.instances:
            seen |= instance.mask
            hidden += instance.visible < 0.95
        # Feathered outlines are half one thing, half another: compare away from them.
        inner = cv2.erode(seen.astype(np.uint8), np.ones((5, 5))).astype(bool)
        outer = cv2.dilate(seen.astype(np.uint8), np.ones((5, 5))).astype(bool)
        assert red[inner].mean() > 0.9
        assert not red[~outer].any()
    assert hidden > 3, 'nothing was occluded: the test shows nothing'


def test_no_object_is_less_visible_than_asked_for():
    options = replace(OPTIONS, objects=(4, 6), min_visible=0.4, difficult_below=0.7)
    fractions = []
    for i in range(10):
        for instance in compose_scene(ShapeSource(), options, [1, i]).instances:
            assert instance.visible >= 0.4
            assert instance.difficult == (instance.visible < 0.7)
            fractions.append(instance.visible)
    assert min(fractions) < 0.7 < max(fractions)


def test_object_sizes_stay_within_bounds():
    options = replace(OPTIONS, objects=(1, 1), distractors=(0, 0), object_size=(0.25, 0.5))
    sides = []
    for i in range(30):
        for instance in compose_scene(ShapeSource(), options, [2, i]).instances:
            if instance.visible > 0.999:
                x0, y0, x1, y1 = instance.box
                sides.append(max(x1 - x0, y1 - y0))
    assert len(sides) > 5
    assert min(sides) >= 0.25 * 96 - 4  # feathering may take off a thin tip
    assert max(sides) <= 0.5 * 96 + 1


def test_same_scene_without_warps_keeps_objects_and_background():
    for i in range(3):
        options = replace(OPTIONS, objects=(2, 2), distractors=(0, 0), object_size=(0.2, 0.3))
        plain = compose_scene(ShapeSource(), replace(options, warp=False), [5, i])
        warped = compose_scene(ShapeSource(), options, [5, i])
        assert [a.label for a in plain.instances] == [a.label for a in warped.instances]
        same = (plain.image == warped.image).all(axis=2).mean()
        assert 0.6 < same < 0.999


def test_warp_moves_the_outline_but_keeps_the_object_whole():
    rng = np.random.default_rng(0)
    mask = shape_mask('star', rng, 80)
    cutout = np.dstack([np.full((80, 80, 3), 90, np.uint8), mask])
    warped = warp_cutout(cutout, rng)
    inside = warped[..., 3] > 0
    assert abs(warped[..., :3][inside].astype(int) - 90).max() <= 1, 'colour bled in from outside'
    area = (mask >= 128).sum()
    assert 0.5 * area < (warped[..., 3] >= 128).sum() < 2 * area
    opaque = warped[..., 3] >= 128
    for edge in (opaque[0], opaque[-1], opaque[:, 0], opaque[:, -1]):
        assert edge.any(), 'not cropped to the outline'
        assert not edge.all(), 'cut off by the canvas'


@pytest.mark.parametrize('side', [20, 33, 90])
def test_scaling_lets_no_colour_in_from_the_transparent_part(side):
    mask = shape_mask('star', np.random.default_rng(0), 60)
    color = np.where((mask > 0)[..., None], 90, 255).astype(np.uint8).repeat(3, axis=2)
    scaled = resize_cutout(np.dstack([color, mask]), side)
    assert max(scaled.shape[:2]) == side
    inside = scaled[..., 3] > 0
    assert abs(scaled[..., :3][inside].astype(int) - 90).max() <= 1


@pytest.mark.parametrize('name', SHAPE_CLASSES)
def test_shapes_fill_their_canvas_and_vary(name):
    rng = np.random.default_rng(0)
    masks = [shape_mask(name, rng, 64) for _ in range(3)]
    assert not np.array_equal(masks[0], masks[1])
    for mask in masks:
        cropped = crop_visible(np.dstack([mask] * 4))
        assert 50 <= max(cropped.shape[:2]) <= 64
        assert not mask[[0, -1]].any()


def test_ring_has_a_hole_and_distractors_have_none():
    rng = np.random.default_rng(0)
    assert shape_mask('ring', rng, 64)[32, 32] == 0
    for _ in range(10):
        assert distractor_mask(rng, 64)[32, 32] == 255
