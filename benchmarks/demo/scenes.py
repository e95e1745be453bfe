# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Generated scenes as the new camera shows them, in the folders that the demo's configs read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2

from ..camera.testbeds import TESTBEDS, Geometry, classes_of, shape_scene
from ..datasets.geometry import warp_labels, warp_picture

HOME = 'home'
"""Folder of the same scenes as the baseline's own camera shows them."""


def compose(out: Path, counts: Mapping[str, int], camera: str, workers: int, done: Callable[[int], None]) -> None:
    """Write ``OUT/SPLIT/images`` and ``OUT/SPLIT/labels`` of every split, and both in ``OUT/HOME``, too.

    Args:
        out: folder of the data set.
        counts: scenes of each split.
        camera: name of a map.
        workers: processes.
        done: told how many scenes are written.
    """
    for split in counts:
        for kind in ('images', 'labels'):
            (out / split / kind).mkdir(parents=True)
            (out / HOME / split / kind).mkdir(parents=True)
    scenes = [(split, index) for split, count in counts.items() for index in range(count)]
    with ProcessPoolExecutor(workers) as pool:
        for number, _ in enumerate(pool.map(partial(_take, out, camera), scenes, chunksize=4), 1):
            done(number)


def _take(out: Path, camera: str, scene: tuple[str, int]) -> None:
    cv2.setNumThreads(1)
    split, index = scene
    scene = shape_scene(split, index)
    picture, labels = scene.image, classes_of(scene)
    for folder, name in ((out / split, camera), (out / HOME / split, 'identity')):
        bed, geometry = TESTBEDS['shapes'], Geometry(name)
        size = bed.size(geometry)
        view = geometry.view(size, split, index)
        file = f'{index:04d}'
        taken = warp_picture(picture, view, size, bed.scale)
        cv2.imwrite(str(folder / 'images' / f'{file}.jpg'), taken, [cv2.IMWRITE_JPEG_QUALITY, 95])
        cv2.imwrite(str(folder / 'labels' / f'{file}.png'), warp_labels(labels, view, size, bed.scale))
