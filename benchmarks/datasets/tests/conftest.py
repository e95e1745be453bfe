# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Small composed sets, and folders of cut-outs and backgrounds to compose from."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.datasets import SHAPE_CLASSES, compose_cutouts, compose_shapes
from benchmarks.datasets.shapes import shape_mask

IMAGES = {'train': 8, 'val': 3, 'test': 3}


@dataclass
class Material:
    """Folders that ``compose_cutouts`` takes."""

    cutouts: Path
    backgrounds: Path
    distractors: Path


def write_cutout(path: Path, rng: np.random.Generator, name: str = 'star') -> None:
    color = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.dstack([color, shape_mask(name, rng, 60)]))


def write_material(root: Path) -> Material:
    rng = np.random.default_rng(0)
    for name in SHAPE_CLASSES[:2]:
        for i in range(5):
            write_cutout(root / 'cutouts' / name / f'{i}.png', rng, name)
    for i in range(3):
        write_cutout(root / 'distractors' / f'{i}.png', rng, SHAPE_CLASSES[3])
    (root / 'backgrounds').mkdir()
    for i in range(4):
        photo = rng.integers(0, 256, (90, 130, 3), dtype=np.uint8)
        cv2.imwrite(str(root / 'backgrounds' / f'{i}.jpg'), photo)
    return Material(root / 'cutouts', root / 'backgrounds', root / 'distractors')


@pytest.fixture
def material(tmp_path):
    return write_material(tmp_path)


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """A composed set of shapes: its folder."""
    out = tmp_path_factory.mktemp('shapes') / 'VOCdevkit'
    compose_shapes(out, **IMAGES, size=96, seed=3)
    return out


@pytest.fixture(scope='session')
def cutouts(tmp_path_factory):
    """A set composed of cut-outs from files: its folder."""
    root = tmp_path_factory.mktemp('cutouts')
    material = write_material(root)
    out = root / 'VOCdevkit'
    compose_cutouts(out, material.cutouts, material.backgrounds, distractors=material.distractors, **IMAGES)
    return out


@pytest.fixture(params=['shapes', 'cutouts'])
def composed(request):
    """Either composed set."""
    return request.getfixturevalue(request.param)
