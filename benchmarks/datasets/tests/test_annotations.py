# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The three kinds of annotation describe the same visible pixels."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from benchmarks.datasets import SceneOptions, compose_shapes

SPLITS = ('train', 'val', 'test')


def indexed(path):
    picture = Image.open(path)
    assert picture.mode == 'P'
    return np.asarray(picture)


def voc_objects(root, name):
    tree = ET.parse(root / 'VOC2007' / 'Annotations' / f'{name}.xml')
    for node in tree.findall('object'):
        box = [int(node.find(f'bndbox/{tag}').text) for tag in ('xmin', 'ymin', 'xmax', 'ymax')]
        yield node.find('name').text, box, int(node.find('difficult').text)


def tight_box(mask):
    rows, cols = np.nonzero(mask)
    return [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]


def annotated(root):
    """Yields (image name, COCO annotations, categories) over all splits."""
    for split in SPLITS:
        coco = COCO(root / 'annotations' / f'{split}.json')
        names = {c['id']: c['name'] for c in coco.loadCats(coco.getCatIds())}
        for image in coco.loadImgs(coco.getImgIds()):
            yield image['file_name'][:-4], coco.loadAnns(coco.getAnnIds(image['id'])), names


def test_coco_areas_and_boxes_are_those_of_the_masks(composed):
    count = 0
    for _, annotations, _ in annotated(composed):
        for annotation in annotations:
            mask = coco_mask.decode(annotation['segmentation'])
            x0, y0, x1, y1 = tight_box(mask)
            assert annotation['area'] == mask.sum()
            assert annotation['bbox'] == [x0, y0, x1 - x0, y1 - y0]
            count += 1
    assert count > 14


def test_voc_boxes_are_the_coco_boxes_counted_from_one(composed):
    for name, annotations, names in annotated(composed):
        expected = [
            (names[a['category_id']], [x + 1, y + 1, x + w, y + h], a['iscrowd'])
            for a in annotations
            for x, y, w, h in [a['bbox']]
        ]
        assert list(voc_objects(composed, name)) == expected


def test_segmentation_masks_hold_the_visible_pixels_of_every_instance(composed):
    classes = json.loads((composed / 'meta.json').read_text())['plan']['classes']
    voc = composed / 'VOC2007'
    for name, annotations, names in annotated(composed):
        by_class = indexed(voc / 'SegmentationClass' / f'{name}.png')
        by_object = indexed(voc / 'SegmentationObject' / f'{name}.png')
        expected = np.zeros_like(by_class)
        for number, annotation in enumerate(annotations, 1):
            mask = coco_mask.decode(annotation['segmentation']).astype(bool)
            assert not expected[mask].any(), 'visible masks overlap'
            expected[mask] = classes.index(names[annotation['category_id']]) + 1
            assert np.array_equal(by_object == number, mask)
        assert np.array_equal(by_class, expected)


def test_border_marks_the_outline_as_ignored_and_nothing_else(tmp_path):
    plain, banded = tmp_path / 'plain', tmp_path / 'banded'
    for out, border in ((plain, 0), (banded, 1)):
        counts = {'train': 2, 'val': 0, 'test': 0}
        compose_shapes(out, **counts, size=64, options=SceneOptions(border=border))
    for path in sorted((plain / 'VOC2007' / 'SegmentationClass').iterdir()):
        before = indexed(path).astype(int)
        after = indexed(banded / 'VOC2007' / 'SegmentationClass' / path.name)
        edge = np.zeros(before.shape, bool)
        edge[:, 1:] |= before[:, 1:] != before[:, :-1]
        edge[1:] |= before[1:] != before[:-1]
        assert edge.any()
        assert (after[edge] == 255).all()
        assert np.array_equal(after[after != 255], before[after != 255])


def test_lists_name_every_picture_once(composed):
    sets = composed / 'VOC2007' / 'ImageSets'
    lists = {s: (sets / 'Main' / f'{s}.txt').read_text().split() for s in (*SPLITS, 'trainval')}
    pictures = sorted(p.stem for p in (composed / 'VOC2007' / 'JPEGImages').iterdir())
    assert [name for split in SPLITS for name in lists[split]] == pictures
    assert lists['trainval'] == lists['train'] + lists['val']
    for split, names in lists.items():
        assert (sets / 'Segmentation' / f'{split}.txt').read_text().split() == names


def test_meta_counts_are_the_annotations(composed):
    counts = json.loads((composed / 'meta.json').read_text())['counts']
    for split in SPLITS:
        coco = json.loads((composed / 'annotations' / f'{split}.json').read_text())
        found = counts[split]
        assert found['images'] == len(coco['images'])
        assert found['instances'] == len(coco['annotations']) == sum(found['per_class'].values())
        assert found['difficult'] == sum(a['iscrowd'] for a in coco['annotations'])


@pytest.mark.parametrize('split', ['val', 'test'])
def test_empty_split_still_has_its_lists(tmp_path, split):
    compose_shapes(tmp_path / 'out', **{'train': 1, 'val': 0, 'test': 0}, size=48)
    assert (tmp_path / 'out/VOC2007/ImageSets/Main' / f'{split}.txt').read_text() == ''
    assert json.loads((tmp_path / f'out/annotations/{split}.json').read_text())['images'] == []
