# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Pictures and labels before and after a change of geometry, as tensors.

Every picture is taken of a *scene* that is larger or finer than the picture, through a view of
``benchmarks.datasets.geometry``: the baseline's pictures through the identity, the new camera's through a map.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ..datasets.geometry import MAPS, View, warp_labels, warp_picture
from ..datasets.scene import Scene, SceneOptions, compose_scene
from ..datasets.shapes import SHAPE_CLASSES
from ..datasets.sources import ShapeSource
from ..datasets.warped import LEAST_SEEN, shown_share
from .archives import archived_scenes, outlined_boxes

SPLITS = ('train', 'val', 'test')


@dataclass(frozen=True)
class Camera:
    """A data set that another camera took, in the place of a map.

    Attributes:
        size: (height, width) of its pictures.
        magnification: the zoom of the test bed's scenes that shows its pixels as they are.
        classes: its class of each of the test bed's.
    """

    size: tuple[int, int]
    magnification: float
    classes: tuple[int, ...]


# After CamVid: streets of another country.
CAMERAS = {'idd': Camera((227, 320), 1.5, (6, 5, 4, 0, 1, 5, 4, 4, 3, 2, 2))}


@dataclass(frozen=True)
class Geometry:
    """A map with its parameters, such as ``Geometry('zoom', (('magnification', 2.0),))``."""

    name: str = 'identity'
    values: tuple[tuple[str, object], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Geometry:
        """``'fisheye'``, ``'zoom:magnification=2.5'``, ``'anisotropic:small=(1,1),large=(2,2)'``."""
        name, _, rest = text.partition(':')
        return cls(name, tuple(eval(f'dict({rest})').items()) if rest else ())

    def view(self, size: tuple[int, int], split: str, index: int) -> View:
        """The view of a picture; the same for every network, seed and arm."""
        rng = np.random.default_rng([SPLITS.index(split), index])
        if self.name in CAMERAS:
            return MAPS['zoom'](size, rng, CAMERAS[self.name].magnification)
        return MAPS[self.name](size, rng, **dict(self.values))

    def __str__(self) -> str:
        values = ','.join(f'{key}={value}'.replace(' ', '') for key, value in self.values)
        return f'{self.name}:{values}' if values else self.name


@dataclass(frozen=True)
class Testbed:
    """A data set: where its scenes come from, and how large its pictures are.

    Attributes:
        name: ``'shapes'``, ``'shape-boxes'``, or a packed data set of ``archives.ARCHIVES``.
        classes: number of classes.
        home: (height, width) of the baseline's pictures.
        target: (height, width) of the new camera's.
        scale: pixels of a scene for one of a picture of magnification 1.
        pictures: how many scenes of each split are composed; files decide otherwise.
        boxes: whether objects are found, and not pixels labelled.
    """

    name: str
    classes: int
    home: tuple[int, int]
    target: tuple[int, int]
    scale: float = 1.0
    pictures: dict[str, int] = field(default_factory=dict)
    boxes: bool = False

    def size(self, geometry: Geometry) -> tuple[int, int]:
        if geometry.name in CAMERAS:
            return CAMERAS[geometry.name].size
        return self.home if geometry.name == 'identity' else self.target


_COMPOSED = {'train': 2000, 'val': 300, 'test': 500}
TESTBEDS = {
    'shapes': Testbed('shapes', 1 + len(SHAPE_CLASSES), (128, 128), (192, 192), 1.5, _COMPOSED),
    'shape-boxes': Testbed('shape-boxes', len(SHAPE_CLASSES), (128, 128), (192, 192), 1.5, _COMPOSED, boxes=True),
    'camvid': Testbed('camvid', 11, (240, 320), (240, 320), 1.5),
    'horses': Testbed('horses', 2, (192, 256), (192, 256)),
    'msrc': Testbed('msrc', 22, (208, 304), (208, 304)),
    # Larger than the scene at home, too: detectors take black for objects if they have never seen it.
    'bccd': Testbed('bccd', 3, (192, 256), (256, 352), 3.0, boxes=True),
    'chess': Testbed('chess', 12, (256, 368), (352, 512), 1.5, boxes=True),
}


def shape_scene(split: str, index: int) -> Scene:
    """Generated shapes on a picture twice as wide as the baseline's."""
    bed = TESTBEDS['shapes']
    side = round(2 * bed.home[0] * bed.scale)
    sizes = (45 * bed.scale / side, 96 * bed.scale / side)
    options = SceneOptions(side, (4, 8), (0, 3), sizes, warp_strength=0.7)
    return compose_scene(ShapeSource(round(96 * bed.scale * 1.1)), options, [SPLITS.index(split), index])


def classes_of(scene: Scene) -> np.ndarray:
    """(H, W) uint8: 0 is the background."""
    labels = np.zeros(scene.image.shape[:2], np.uint8)
    for instance in scene.instances:
        labels[instance.mask] = instance.label + 1
    return labels


def boxes_of(scene: Scene, view: View, size: tuple[int, int], scale: float) -> np.ndarray:
    """Boxes of the objects in a picture of the scene, from their masks.

    Returns:
        (objects, 6) float32: x0, y0, x1, y1, label, and 1 where less than a quarter of the object is shown.
    """
    index = np.zeros(scene.image.shape[:2], np.uint8)
    for number, instance in enumerate(scene.instances, 1):
        index[instance.mask] = number
    shown, rows = warp_labels(index, view, size, scale), []
    for number, instance in enumerate(scene.instances, 1):
        y, x = np.nonzero(shown == number)
        if len(y):
            hardly = shown_share(instance.mask, view, size, scale) < LEAST_SEEN
            rows.append((x.min(), y.min(), x.max() + 1, y.max() + 1, instance.label, hardly))
    return np.array(rows, np.float32).reshape(-1, 6)


def prepare(name: str, maps: Sequence[str], data: Path, cache: Path, workers: int = 1, share: float = 1.0) -> None:
    """Make the tensors of every map and split that are not there yet.

    Args:
        name: the test bed.
        maps: texts of :class:`Geometry`.
        data: folder of the packed data sets.
        cache: folder of the tensors.
        workers: processes.
        share: part of the composed pictures to make, for a trial.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        missing = [text for text in maps if not cached(cache, name, text, split).is_file()]
        for source, texts in itertools.groupby(missing, lambda text: text if text in CAMERAS else name):
            _prepare(name, source, list(texts), split, data, cache, workers, share)


def _prepare(
    name: str, source: str, texts: Sequence[str], split: str, data: Path, cache: Path, workers: int, share: float
) -> None:
    """Maps of one source of scenes: the test bed, or the data set of another camera."""
    geometries, bed = [Geometry.parse(text) for text in texts], TESTBEDS[name]
    if bed.pictures:
        count = max(8, round(bed.pictures[split] * share))
        rows = _mapped(partial(_composed, name, geometries, split), workers, range(count))
    else:
        scenes = list(archived_scenes(source, data, split))
        rows = _mapped(partial(_archived, name, geometries, split), workers, range(len(scenes)), scenes)
    for text, column in zip(texts, zip(*rows, strict=True), strict=True):
        pictures, labels = zip(*column, strict=True)
        arrays = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), np.stack(labels)
        partial_file = cached(cache, name, text, split).with_suffix(f'.{os.getpid()}')
        torch.save({'pictures': arrays[0], 'labels': torch.from_numpy(arrays[1])}, partial_file)
        partial_file.rename(cached(cache, name, text, split))


def _mapped(function: Callable[..., list], workers: int, *values: Iterable) -> list[list]:
    if workers == 1:
        return list(map(function, *values))
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(function, *values, chunksize=8))


Truth = Callable[[View, tuple[int, int]], np.ndarray]
"""What a picture of a size through a view is to be called."""


def _composed(name: str, geometries: Sequence[Geometry], split: str, index: int) -> list:
    scene, bed = shape_scene(split, index), TESTBEDS[name]
    if bed.boxes:
        return _taken(
            *(name, geometries, split, index, scene.image),
            lambda view, size: _padded(boxes_of(scene, view, size, bed.scale)),
        )
    return _archived(name, geometries, split, index, (scene.image, classes_of(scene)))


def _padded(boxes: np.ndarray, most: int = 32) -> np.ndarray:
    """(most, 6), the label of what is no object is -1."""
    filled = np.full((most, 6), -1, np.float32)
    filled[: len(boxes)] = boxes
    return filled


def _archived(
    name: str, geometries: Sequence[Geometry], split: str, index: int, scene: tuple[np.ndarray, np.ndarray]
) -> list:
    (picture, labels), bed = scene, TESTBEDS[name]

    def truth(view: View, size: tuple[int, int]) -> np.ndarray:
        if bed.boxes:
            return _padded(outlined_boxes(name, labels, picture.shape[:2], view, size, bed.scale))
        return warp_labels(labels, view, size, bed.scale)

    return _taken(name, geometries, split, index, picture, truth)


def _taken(
    name: str, geometries: Sequence[Geometry], split: str, index: int, picture: np.ndarray, truth: Truth
) -> list:
    """A scene's picture through each view, and its truth."""
    cv2.setNumThreads(1)
    bed, taken = TESTBEDS[name], []
    for geometry in geometries:
        size = bed.size(geometry)
        view = geometry.view(size, split, index)
        taken.append((warp_picture(picture, view, size, bed.scale), truth(view, size)))
    return taken


def cached(cache: Path, name: str, text: str, split: str) -> Path:
    key = hashlib.sha256(f'{name} {text}'.encode()).hexdigest()[:8]
    return cache / f'{name}-{text.partition(":")[0]}-{key}-{split}.pt'


@dataclass(frozen=True)
class Pictures:
    """A split: pictures (N, 3, H, W) uint8 BGR, labels (N, H, W) uint8."""

    pictures: Tensor
    labels: Tensor

    def labelled(self, count: int | None) -> Pictures:
        """``count`` of the pictures, the same for every seed and arm."""
        if count is None or count >= len(self.labels):
            return self
        chosen = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(0))[:count]
        return replace(self, pictures=self.pictures[chosen], labels=self.labels[chosen])

    def batch(self, rows: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures and labels of ``rows`` (B,), those that are ``mirrored`` (B,) from right to left."""
        flips, pictures = mirrored.view(-1, 1, 1), self.pictures[rows]
        pictures = torch.where(flips[:, None], pictures.flip(-1), pictures)
        return pictures, self._labels(self.labels[rows], flips)

    def _labels(self, labels: Tensor, flips: Tensor) -> Tensor:
        return torch.where(flips, labels.flip(-1), labels)


class Boxes(Pictures):
    """A split whose labels are objects, (N, M, 6) float: see :func:`boxes_of`; the label of what is none is -1."""

    def _labels(self, labels: Tensor, flips: Tensor) -> Tensor:
        width = self.pictures.shape[-1]
        x0, y0, x1, y1, *rest = labels.unbind(-1)
        return torch.where(flips, torch.stack((width - x1, y0, width - x0, y1, *rest), dim=-1), labels)


def load(cache: Path, name: str, text: str, split: str, device: str) -> Pictures:
    """What :func:`prepare` has made."""
    held = torch.load(cached(cache, name, text, split), weights_only=True)
    kind = Boxes if TESTBEDS[name].boxes else Pictures
    return kind(held['pictures'].to(device), held['labels'].to(device))
