# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Pictures, masks and boxes of the usual layouts through a map."""

from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from mmdeform_upgrade.errors import DataError

from .geometry import MAPS, View, warp_labels, warp_picture

LEAST_SEEN = 0.25
_PICTURES = ('.jpg', '.jpeg', '.png', '.bmp')


@dataclass
class Job:
    """What is done to every picture.

    Attributes:
        name: the map.
        values: its parameters.
        seed: of maps that draw; a picture's view depends on it and on the picture's name alone.
        size: (height, width) of the new pictures, or None for that of each old one.
        counts: of pictures and objects, for the record.
        shown: some new pictures, for the contact sheet.
    """

    name: str
    values: dict[str, Any]
    seed: int = 0
    size: tuple[int, int] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    shown: list[np.ndarray] = field(default_factory=list)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


class Taken:
    """One picture through its view."""

    def __init__(self, job: Job, source: Path, target: Path):
        scene = cv2.imread(str(source), cv2.IMREAD_COLOR)
        if scene is None:
            raise DataError(f'{source}: not a picture that OpenCV can read')
        self.job, self.scene_size = job, scene.shape[:2]
        self.size = job.size or self.scene_size
        rng = np.random.default_rng([job.seed, zlib.crc32(source.stem.encode())])
        self.view: View = MAPS[job.name](self.size, rng, **job.values)
        self.image = warp_picture(scene, self.view, self.size)
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), self.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        job.count('pictures')
        if len(job.shown) < 12:
            job.shown.append(self.image)

    def labels(self, index: np.ndarray) -> np.ndarray:
        return warp_labels(index, self.view, self.size)

    def seen(self, mask: np.ndarray) -> tuple[np.ndarray, float]:
        """An instance's mask (H, W) bool in the new picture, and the share of it that the picture shows."""
        return self.labels(mask.astype(np.uint8)) == 1, shown_share(mask, self.view, self.size)

    def outline(self, box: tuple[float, float, float, float]) -> tuple[np.ndarray, float]:
        """The box (x0, y0, x1, y1) as a polygon of the new picture, filled, and the share that is shown."""
        x0, y0, x1, y1 = box
        filled = np.zeros(self.scene_size, bool)
        filled[max(0, round(y0)) : max(round(y1), round(y0) + 1), max(0, round(x0)) : max(round(x1), round(x0) + 1)] = (
            True
        )
        return self.seen(filled)

    def object(self, mask: np.ndarray | None, box: tuple[float, float, float, float]) -> tuple | None:
        """(box, share, mask) of an object in the new picture; None where nothing of it is seen."""
        shown, share = self.seen(mask) if mask is not None and mask.any() else self.outline(box)
        self.job.count('objects from masks' if mask is not None and mask.any() else 'objects from boxes')
        rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
        if not len(rows):
            self.job.count('objects out of sight')
            return None
        if share < LEAST_SEEN:
            self.job.count('objects hardly seen')
        return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1), share, shown


def shown_share(mask: np.ndarray, view: View, size: tuple[int, int], scale: float = 1.0) -> float:
    """How much of a mask (H, W) bool of the scene a picture of ``size`` shows; ``scale`` as in ``warp_picture``."""
    y, x = np.nonzero(mask)
    height, width = mask.shape
    points = view.to_picture(np.stack((x + 0.5 - width / 2, y + 0.5 - height / 2), axis=-1) / scale)
    inside = (np.abs(points[..., 0]) < size[1] / 2) & (np.abs(points[..., 1]) < size[0] / 2)
    return float(inside.mean()) if len(x) else 0.0


def warp_voc(source: Path, out: Path, job: Job) -> None:
    """A year of VOC's layout: JPEGImages, Annotations, ImageSets, and Segmentation* where there are any."""
    for file in sorted((source / 'ImageSets').rglob('*.txt')):
        copied = out / file.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(file.read_bytes())
    for path in _pictures(source / 'JPEGImages'):
        taken = Taken(job, path, out / 'JPEGImages' / path.name)
        objects = source / 'SegmentationObject' / f'{path.stem}.png'
        index = np.asarray(Image.open(objects)) if objects.is_file() else None
        annotation = source / 'Annotations' / f'{path.stem}.xml'
        if annotation.is_file():
            _write(out / 'Annotations' / annotation.name, _voc_annotation(taken, ET.parse(annotation).getroot(), index))
        for folder in ('SegmentationClass', 'SegmentationObject'):
            if (source / folder / f'{path.stem}.png').is_file():
                _warp_mask(taken, source / folder / f'{path.stem}.png', out / folder / f'{path.stem}.png')


def _voc_annotation(taken: Taken, root: ET.Element, index: np.ndarray | None) -> bytes:
    size = root.find('size')
    if size is not None:
        for tag, value in (('height', taken.size[0]), ('width', taken.size[1])):
            _set(size, tag, value)
    for number, node in enumerate(root.findall('object'), 1):
        box = node.find('bndbox')
        assert box is not None
        x0, y0, x1, y1 = (float(box.findtext(tag, '0')) for tag in ('xmin', 'ymin', 'xmax', 'ymax'))
        found = taken.object(index == number if index is not None else None, (x0 - 1, y0 - 1, x1, y1))
        if found is None:
            root.remove(node)
            continue
        (x0, y0, x1, y1), share, _ = found
        # VOC counts pixels from 1 and names the last one that belongs to the object.
        for tag, value in (('xmin', x0 + 1), ('ymin', y0 + 1), ('xmax', x1), ('ymax', y1)):
            _set(box, tag, value)
        _set(node, 'truncated', int(share < 0.999 or node.findtext('truncated') == '1'))
        _set(node, 'difficult', int(share < LEAST_SEEN or node.findtext('difficult') == '1'))
    return ET.tostring(root) + b'\n'


def _set(parent: ET.Element, tag: str, value: int) -> None:
    node = parent.find(tag)
    (ET.SubElement(parent, tag) if node is None else node).text = str(value)


def warp_coco(source: Path, out: Path, job: Job) -> None:
    """COCO's layout: annotations/*.json, and the pictures that they name, wherever below ``source`` they are."""
    pictures = _pictures(source)
    files = sorted((source / 'annotations').glob('*.json'))
    if not files:
        raise DataError(f'{source}: there is no annotations/*.json; put the boxes of all splits there')
    for file in files:
        held = json.loads(file.read_text(encoding='utf8'))
        by_image: dict[int, list[dict]] = {}
        for annotation in held['annotations']:
            if 'bbox' not in annotation or 'keypoints' in annotation:
                raise DataError(f'{file}: only boxes and masks are warped; keep other annotations out of this folder')
            by_image.setdefault(annotation['image_id'], []).append(annotation)
        result = {**held, 'images': [], 'annotations': []}
        for image in held['images']:
            path = _named_picture(pictures, image['file_name'], file)
            taken = Taken(job, path, out / path.relative_to(source))
            result['images'].append({**image, 'height': taken.size[0], 'width': taken.size[1]})
            result['annotations'] += _coco_annotations(taken, by_image.get(image['id'], []))
        _write(out / 'annotations' / file.name, json.dumps(result).encode())


def _named_picture(pictures: list[Path], name: str, file: Path) -> Path:
    parts = Path(name).parts
    found = [path for path in pictures if path.parts[-len(parts) :] == parts]
    if not found:
        raise DataError(f'{file}: there is no picture {name} below {file.parent.parent}')
    if len(found) > 1:
        places = ', '.join(map(str, found))
        raise DataError(f'{file}: {name} may be {places}; give each split a folder of its own, with its annotations')
    return found[0]


def _coco_annotations(taken: Taken, annotations: list[dict]) -> Iterator[dict]:
    for annotation in annotations:
        x, y, width, height = annotation['bbox']
        mask = _coco_mask(annotation.get('segmentation'), taken.scene_size)
        found = taken.object(mask, (x, y, x + width, y + height))
        if found is None:
            continue
        (x0, y0, x1, y1), share, shown = found
        new = copy.deepcopy(annotation)
        new.update(bbox=[x0, y0, x1 - x0, y1 - y0], area=int(shown.sum()))
        new['iscrowd'] = int(share < LEAST_SEEN or annotation.get('iscrowd', 0))
        if mask is not None:
            code = coco_mask.encode(np.asfortranarray(shown.astype(np.uint8)))
            new['segmentation'] = {'size': code['size'], 'counts': code['counts'].decode()}
        yield new


def _coco_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray | None:
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    elif isinstance(segmentation['counts'], list):
        segmentation = coco_mask.frPyObjects(segmentation, *size)
    return coco_mask.decode(segmentation).astype(bool)


def warp_masks(source: Path, out: Path, job: Job) -> None:
    """Folders of pictures beside folders of index masks of the same names: ``X`` and ``Xannot``, or images and masks."""
    pairs = [(path, source / f'{path.name}annot') for path in sorted(source.iterdir()) if path.is_dir()]
    pairs = [(pictures, masks) for pictures, masks in [*pairs, (source / 'images', source / 'masks')] if masks.is_dir()]
    if not pairs:
        raise DataError(f'{source}: there is neither a folder X beside Xannot, nor images beside masks')
    for pictures, masks in pairs:
        for path in _pictures(pictures):
            taken = Taken(job, path, out / path.relative_to(source))
            mask = masks / f'{path.stem}.png'
            if not mask.is_file():
                raise DataError(f'{path}: there is no mask {mask}')
            _warp_mask(taken, mask, out / mask.relative_to(source))
    for file in sorted(source.glob('*.txt')) + sorted(source.glob('*.json')):
        _write(out / file.name, file.read_bytes())


def _warp_mask(taken: Taken, source: Path, target: Path) -> None:
    held = Image.open(source)
    index = Image.fromarray(taken.labels(np.asarray(held)))
    if held.mode == 'P':
        index.putpalette(held.getpalette() or [])
    target.parent.mkdir(parents=True, exist_ok=True)
    index.save(target)


def _pictures(folder: Path) -> list[Path]:
    found = [p for p in sorted(folder.rglob('*')) if p.suffix.lower() in _PICTURES] if folder.is_dir() else []
    if not found:
        raise DataError(f'{folder}: there are no pictures ({", ".join(_PICTURES)})')
    return found if found[0].parent != folder else list(tqdm(found, desc=folder.name, disable=None))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


LAYOUTS = {'voc': warp_voc, 'coco': warp_coco, 'masks': warp_masks}
