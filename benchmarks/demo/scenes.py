# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Generated scenes as the new camera shows them, in the folders that the demo's configs read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ..camera.testbeds import TESTBEDS, Geometry, boxes_of, classes_of, shape_scene
from ..datasets.geometry import warp_labels, warp_picture
from ..datasets.shapes import SHAPE_CLASSES
from .tasks import Task

HOME = 'home'
"""Folder of the same scenes as the baseline's own camera shows them."""


def compose(out: Path, task: Task, counts: Mapping[str, int], workers: int, done: Callable[[int], None]) -> None:
    """Write the scenes as both cameras show them: ``OUT/SPLIT`` as the new one does, ``OUT/HOME/SPLIT`` as the old one.

    Each has ``images`` and, beside them, ``labels`` or the boxes in ``SPLIT.json`` (COCO).

    Args:
        out: folder of the data set.
        task: whose camera takes them.
        counts: scenes of each split.
        workers: processes.
        done: told how many scenes are written.
    """
    for split in counts:
        for folder in (out / split, out / HOME / split):
            for kind in ('images',) if task.boxes else ('images', 'labels'):
                (folder / kind).mkdir(parents=True)
    scenes = [(split, index) for split, count in counts.items() for index in range(count)]
    taken: dict[str, list] = {split: [] for split in counts}
    with ProcessPoolExecutor(workers) as pool:
        found = pool.map(partial(_take, out, task), scenes, chunksize=4)
        for number, ((split, _), scene) in enumerate(zip(scenes, found, strict=True), 1):
            taken[split].append(scene)
            done(number)
    if task.boxes:
        for split, rows in taken.items():
            for folder, column in zip((out, out / HOME), zip(*rows, strict=True), strict=True):
                (folder / f'{split}.json').write_text(json.dumps(_coco(column)), encoding='utf8')


def _take(out: Path, task: Task, place: tuple[str, int]) -> list[tuple[tuple[int, int], np.ndarray]]:
    """Write a scene's pictures and labels, the new camera's first; their sizes and boxes."""
    cv2.setNumThreads(1)
    split, index = place
    scene, bed, taken = shape_scene(split, index), TESTBEDS[task.bed], []
    for folder, geometry in ((out / split, task.geometry), (out / HOME / split, Geometry())):
        size = bed.size(geometry)
        view = geometry.view(size, split, index)
        picture = warp_picture(scene.image, view, size, bed.scale)
        cv2.imwrite(str(folder / 'images' / _file(index)), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
        if not task.boxes:
            labels = warp_labels(classes_of(scene), view, size, bed.scale)
            cv2.imwrite(str((folder / 'labels' / _file(index)).with_suffix('.png')), labels)
        taken.append((size, boxes_of(scene, view, size, bed.scale)))
    return taken


def _file(index: int) -> str:
    return f'{index:04d}.jpg'


def _coco(taken: Sequence[tuple[tuple[int, int], np.ndarray]]) -> dict[str, list]:
    """COCO's records of a split; an object that is hardly seen is a crowd, which neither trains nor counts."""
    images, annotations = [], []
    for index, ((height, width), boxes) in enumerate(taken):
        images.append(dict(id=index, file_name=_file(index), height=height, width=width))
        for x0, y0, x1, y1, label, hardly in boxes.tolist():
            box = [x0, y0, x1 - x0, y1 - y0]
            common = dict(id=len(annotations) + 1, image_id=index, category_id=int(label) + 1, bbox=box)
            annotations.append(dict(**common, area=box[2] * box[3], iscrowd=int(hardly)))
    categories = [dict(id=number, name=name) for number, name in enumerate(SHAPE_CLASSES, 1)]
    return dict(images=images, annotations=annotations, categories=categories)
