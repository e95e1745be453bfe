# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Scenes of packed data sets, read from their tar files: pictures with labels of their pixels, or with boxes."""

from __future__ import annotations

import json
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from ..datasets.geometry import IGNORED, View
from ..datasets.warped import LEAST_SEEN

ARCHIVES = {
    'camvid': 'camvid',
    'idd': 'idd_lite',
    'horses': 'weizmann_horses',
    'msrc': 'msrc_v2',
    'bccd': 'bccd',
    'chess': 'chess_pieces',
}
_CELLS = ('RBC', 'WBC', 'Platelets')
_TURN = np.linspace(0, 2 * np.pi, 72, endpoint=False)
_SIDE = np.linspace(-1, 1, 9)
# What is in a box, as an outline of the square from -1 to 1. Cells are round. Chess pieces are not, but their maps keep
# upright boxes upright, so that the box's own outline is exact, also where the picture ends.
_OUTLINES = {
    'bccd': np.stack((np.cos(_TURN), np.sin(_TURN)), axis=1),
    'chess': np.array([(x, y) for x in _SIDE for y in _SIDE if 1 in (abs(x), abs(y))]),
}


class Archive:
    """The files of a packed data set.

    Args:
        tar: the open file.
        folder: name of its one folder.
    """

    def __init__(self, tar: tarfile.TarFile, folder: str):
        self.tar = tar
        members = (member for member in tar if member.isfile())
        self.files = {member.name.removeprefix('./').removeprefix(f'{folder}/'): member for member in members}

    def content(self, path: str) -> bytes:
        file = self.tar.extractfile(self.files[path])
        assert file is not None
        return file.read()

    def picture(self, path: str, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
        return cv2.imdecode(np.frombuffer(self.content(path), np.uint8), flag)


Scenes = Iterator[tuple[np.ndarray, np.ndarray]]


def archived_scenes(name: str, data: Path, split: str) -> Scenes:
    """The scenes of a packed data set in the order of its list: a picture and its truth.

    The truth is labels (H, W) uint8, or objects (n, 5) float: x0, y0, x1, y1 in pixels, and the label.
    """
    readers: dict[str, Callable[[Archive, str], Scenes]] = {'bccd': _cells, 'chess': _pieces}
    with tarfile.open(data / f'{ARCHIVES[name]}.tar') as tar:
        archive = Archive(tar, ARCHIVES[name])
        if name in readers:
            yield from readers[name](archive, split)
            return
        if name == 'camvid':
            stems = sorted(Path(path).stem for path in archive.files if path.startswith(f'{split}/'))
            pictures, masks = split, f'{split}annot'
        elif name == 'idd':
            stems, folder = _drives(archive, split)
            pictures, masks = f'images/{folder}', f'masks/{folder}'
        else:
            stems = archive.content(f'{split}.txt').decode().split()
            pictures, masks = 'images', 'masks'
        for stem in stems:
            mask = archive.picture(f'{masks}/{stem}.png', cv2.IMREAD_UNCHANGED)
            yield _fitted(name, archive.picture(f'{pictures}/{stem}.jpg'), mask)


def _drives(archive: Archive, split: str) -> tuple[list[str], str]:
    """IDD Lite's pictures of a split and their folder: its own ``val`` is the test, a tenth of its drives validate."""
    folder = 'val' if split == 'test' else 'train'
    stems = archive.content(f'{folder}.txt').decode().split()
    if folder == 'train':
        drives = sorted({stem.partition('/')[0] for stem in stems}, key=int)
        stems = [stem for stem in stems if (stem.partition('/')[0] in drives[::10]) == (split == 'val')]
    return stems, folder


def _fitted(name: str, picture: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if labels.ndim == 3:
        labels = labels[..., 0]
    if name == 'camvid':
        return picture, np.where(labels == 11, IGNORED, labels).astype(np.uint8)
    if name == 'horses':  # of many sizes: the longer side becomes 256
        factor = 256 / max(picture.shape[:2])
        size = tuple(round(side * factor) for side in picture.shape[1::-1])
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    return picture, labels


def _cells(archive: Archive, split: str) -> Scenes:
    """VOC's layout; a box of no area is left out."""
    for stem in archive.content(f'ImageSets/Main/{split}.txt').decode().split():
        rows = []
        for node in ET.fromstring(archive.content(f'Annotations/{stem}.xml')).findall('object'):
            x0, y0, x1, y1 = (float(node.findtext(f'bndbox/{tag}', '0')) for tag in ('xmin', 'ymin', 'xmax', 'ymax'))
            if x1 > x0 and y1 > y0:
                rows.append((x0 - 1, y0 - 1, x1, y1, _CELLS.index(node.findtext('name', ''))))
        yield archive.picture(f'JPEGImages/{stem}.jpg'), np.array(rows, np.float64).reshape(-1, 5)


def _pieces(archive: Archive, split: str) -> Scenes:
    """COCO's layout; the first category is a mistake that occurs once."""
    held = json.loads(archive.content(f'instances_{split}.json'))
    rows: dict[int, list[tuple[float, ...]]] = {image['id']: [] for image in held['images']}
    for annotation in held['annotations']:
        x, y, width, height = annotation['bbox']
        if annotation['category_id'] > 1:
            rows[annotation['image_id']].append((x, y, x + width, y + height, annotation['category_id'] - 2))
    for image in held['images']:
        yield archive.picture(f'{split}/{image["file_name"]}'), np.array(rows[image['id']], np.float64).reshape(-1, 5)


def outlined_boxes(
    name: str, objects: np.ndarray, scene: tuple[int, ...], view: View, size: tuple[int, int], scale: float
) -> np.ndarray:
    """Boxes of objects in a picture of their scene: what is seen of the outline in each box.

    Args:
        name: the data set.
        objects: (n, 5), boxes in the scene's pixels and labels.
        scene: (height, width) of the scene.
        view: the geometry.
        size: (height, width) of the picture.
        scale: pixels of the scene for one of the view's.

    Returns:
        As :func:`testbeds.boxes_of`.
    """
    corners, rows = objects[:, :4].reshape(-1, 2, 2), []
    middles, halves = corners.mean(1), (corners[:, 1] - corners[:, 0]) / 2
    points = middles[:, None] + halves[:, None] * _OUTLINES[name]  # (n, points, 2)
    points = view.to_picture((points - np.array(scene[1::-1]) / 2) / scale) + np.array(size[::-1]) / 2
    height, width = size
    frame = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    for outline, label in zip(points.astype(np.float32), objects[:, 4], strict=True):
        whole = cv2.convexHull(outline)
        area, seen = cv2.intersectConvexConvex(whole, frame)
        if area > 0:
            seen = seen[:, 0]
            rows.append((*seen.min(0), *seen.max(0), label, area < LEAST_SEEN * cv2.contourArea(whole)))
    return np.array(rows, np.float32).reshape(-1, 6)
