# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Writes scenes as VOC detection XML, VOC segmentation masks and COCO JSON.

``VOC2007/`` holds JPEGImages, Annotations, SegmentationClass, SegmentationObject and ImageSets;
``annotations/`` one COCO JSON a split.
"""

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from .scene import Instance, Scene

VOC_DIR = 'VOC2007'
IGNORE = 255


def voc_palette() -> list[tuple[int, int, int]]:
    """Returns VOC's 256 colours, (red, green, blue) by index."""
    colors = []
    for index in range(256):
        red = green = blue = 0
        for bit in range(8):
            red |= ((index >> (3 * bit)) & 1) << (7 - bit)
            green |= ((index >> (3 * bit + 1)) & 1) << (7 - bit)
            blue |= ((index >> (3 * bit + 2)) & 1) << (7 - bit)
        colors.append((red, green, blue))
    return colors


def _indexed(instances: Sequence[Instance], values: Sequence[int], size: int) -> np.ndarray:
    index = np.zeros((size, size), np.uint8)
    for instance, value in zip(instances, values, strict=True):
        index[instance.mask] = value
    return index


def _ignore_border(index: np.ndarray, width: int) -> np.ndarray:
    """Marks what lies within ``width`` pixels of a change of index as ignored."""
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    edge = cv2.dilate(index, kernel) != cv2.erode(index, kernel)
    return np.where(edge, np.uint8(IGNORE), index)


def _text(parent: ET.Element, tag: str, value: object) -> None:
    ET.SubElement(parent, tag).text = str(value)


def _voc_xml(name: str, scene: Scene, classes: Sequence[str]) -> bytes:
    height, width, depth = scene.image.shape
    root = ET.Element('annotation')
    _text(root, 'folder', VOC_DIR)
    _text(root, 'filename', f'{name}.jpg')
    size = ET.SubElement(root, 'size')
    for tag, value in (('width', width), ('height', height), ('depth', depth)):
        _text(size, tag, value)
    _text(root, 'segmented', 1)
    for instance in scene.instances:
        x0, y0, x1, y1 = instance.box
        node = ET.SubElement(root, 'object')
        _text(node, 'name', classes[instance.label])
        _text(node, 'pose', 'Unspecified')
        truncated = x0 == 0 or y0 == 0 or x1 == width or y1 == height
        _text(node, 'truncated', int(truncated))
        _text(node, 'difficult', int(instance.difficult))
        box = ET.SubElement(node, 'bndbox')
        # VOC counts pixels from 1 and names the last one that belongs to the object.
        for tag, value in (('xmin', x0 + 1), ('ymin', y0 + 1), ('xmax', x1), ('ymax', y1)):
            _text(box, tag, value)
    ET.indent(root, space='\t')
    return ET.tostring(root) + b'\n'


def _coco_annotation(instance: Instance, number: int, image_id: int) -> dict:
    code = coco_mask.encode(np.asfortranarray(instance.mask.astype(np.uint8)))
    x0, y0, x1, y1 = instance.box
    return {
        'id': number,
        'image_id': image_id,
        'category_id': instance.label + 1,
        'bbox': [x0, y0, x1 - x0, y1 - y0],
        'area': int(instance.mask.sum()),
        'segmentation': {'size': code['size'], 'counts': code['counts'].decode()},
        # COCO has no "difficult"; "crowd" is what its loaders and metrics ignore likewise.
        'iscrowd': int(instance.difficult),
    }


class DatasetWriter:
    """Writes one data set, picture by picture, into a folder that exists and is empty.

    Args:
        root: The folder.
        classes: Class names; a label is an index into them.
        splits: Names of the splits, also of those that stay empty.
        border: Width in pixels of the ignored band in ``SegmentationClass``; 0 for none.
    """

    def __init__(self, root: Path, classes: Sequence[str], splits: Sequence[str], border: int = 0) -> None:
        self._root, self._classes, self._border = root, classes, border
        self._palette = [value for color in voc_palette() for value in color]
        categories = [{'id': i + 1, 'name': name} for i, name in enumerate(classes)]
        self._coco: dict[str, dict[str, list]] = {
            split: {'images': [], 'annotations': [], 'categories': categories} for split in splits
        }
        self._image_id = 0
        self._annotation_id = 0
        for folder in ('JPEGImages', 'Annotations', 'SegmentationClass', 'SegmentationObject'):
            (root / VOC_DIR / folder).mkdir(parents=True)

    def add(self, split: str, scene: Scene) -> str:
        """Writes a picture and its annotations; returns its name (six digits)."""
        self._image_id += 1
        name = f'{self._image_id:06d}'
        voc = self._root / VOC_DIR
        quality = [cv2.IMWRITE_JPEG_QUALITY, scene.jpeg_quality]
        data = cv2.imencode('.jpg', scene.image, quality)[1].tobytes()
        (voc / 'JPEGImages' / f'{name}.jpg').write_bytes(data)
        (voc / 'Annotations' / f'{name}.xml').write_bytes(_voc_xml(name, scene, self._classes))
        size = scene.image.shape[0]
        labels = [instance.label + 1 for instance in scene.instances]
        by_class = _indexed(scene.instances, labels, size)
        if self._border:
            by_class = _ignore_border(by_class, self._border)
        self._write_indexed(voc / 'SegmentationClass' / f'{name}.png', by_class)
        numbers = range(1, len(labels) + 1)
        by_object = _indexed(scene.instances, numbers, size)
        self._write_indexed(voc / 'SegmentationObject' / f'{name}.png', by_object)
        self._add_coco(split, scene, name)
        return name

    def finish(self) -> None:
        """Writes the lists of pictures and the COCO files."""
        names = {s: [Path(i['file_name']).stem for i in c['images']] for s, c in self._coco.items()}
        if 'train' in names and 'val' in names:
            names['trainval'] = names['train'] + names['val']
        for folder in ('Main', 'Segmentation'):
            lists = self._root / VOC_DIR / 'ImageSets' / folder
            lists.mkdir(parents=True)
            for split, members in names.items():
                (lists / f'{split}.txt').write_text(''.join(f'{name}\n' for name in members))
        (self._root / 'annotations').mkdir()
        for split, coco in self._coco.items():
            (self._root / 'annotations' / f'{split}.json').write_text(json.dumps(coco))

    def _write_indexed(self, path: Path, index: np.ndarray) -> None:
        picture = Image.fromarray(index)
        picture.putpalette(self._palette)  # turns "L" into "P", the indices stay
        picture.save(path)

    def _add_coco(self, split: str, scene: Scene, name: str) -> None:
        coco = self._coco[split]
        height, width = scene.image.shape[:2]
        image = {'id': self._image_id, 'file_name': f'{name}.jpg', 'height': height, 'width': width}
        coco['images'].append(image)
        for instance in scene.instances:
            self._annotation_id += 1
            coco['annotations'].append(_coco_annotation(instance, self._annotation_id, self._image_id))
