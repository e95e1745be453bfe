"""Views of a scene: where pixels look, and what pictures and labels become."""

import numpy as np
import pytest

from benchmarks.datasets.geometry import IGNORED, MAPS, fisheye, warp_labels, warp_picture

SIZE = (48, 64)


def view(name, **values):
    return MAPS[name](SIZE, np.random.default_rng(3), **values)


@pytest.mark.parametrize('name', MAPS)
def test_the_way_to_the_scene_leads_back(name):
    points = np.random.default_rng(0).uniform(-20, 20, (50, 2))
    taken = view(name)
    assert np.allclose(taken.to_picture(taken.to_scene(points)), points, atol=1e-6)


@pytest.mark.parametrize('name', MAPS)
def test_the_jacobian_is_what_neighbouring_pixels_differ_by(name):
    taken = view(name)
    grid, jacobian = taken.grid(SIZE), taken.jacobian(SIZE)
    assert np.allclose(np.gradient(grid[..., 0], axis=1)[1:-1, 1:-1], jacobian[1:-1, 1:-1, 0, 0], atol=0.05)
    assert np.allclose(np.gradient(grid[..., 1], axis=0)[1:-1, 1:-1], jacobian[1:-1, 1:-1, 1, 1], atol=0.05)


def test_a_fisheye_magnifies_its_middle_and_shrinks_its_rim():
    taken = fisheye((192, 192), np.random.default_rng(0), middle=2.6, rim=0.8)
    magnification = 1 / taken.jacobian((192, 192))[96, :, 0, 0]
    assert magnification[96] == pytest.approx(2.6, rel=0.02)
    assert magnification[-1] == pytest.approx(0.8, rel=0.05)
    with pytest.raises(ValueError, match='middle=0.5 must be above rim=0.8'):
        fisheye((192, 192), np.random.default_rng(0), middle=0.5)


def test_the_identity_changes_no_pixel():
    rng = np.random.default_rng(0)
    scene, labels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8), rng.integers(0, 5, SIZE, dtype=np.uint8)
    assert np.array_equal(warp_picture(scene, view('identity'), SIZE), scene)
    assert np.array_equal(warp_labels(labels, view('identity'), SIZE), labels)


def test_labels_follow_the_picture_and_what_has_no_scene_is_ignored():
    scene, labels = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8)
    scene[20:28, 28:36], labels[20:28, 28:36] = 255, 3
    taken = view('zoom', magnification=3.0)
    shown = warp_labels(labels, taken, SIZE) == 3
    differ = shown != (warp_picture(scene, taken, SIZE)[..., 0] > 127)
    assert abs(shown.sum() - 24 * 24) <= 48 and differ.sum() <= 96, 'but for a rim of one pixel'
    far = warp_labels(labels, view('zoom', magnification=0.5), SIZE)
    assert (far[0] == IGNORED).all() and (far[SIZE[0] // 2, SIZE[1] // 2 - 4 : SIZE[1] // 2 + 4] != IGNORED).all()


def test_what_shrinks_is_averaged():
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    small = warp_picture(stripes, MAPS['zoom']((32, 32), np.random.default_rng(0), magnification=1 / 3), (32, 32))
    assert abs(small.astype(int) - 128).max() < 50
