"""Pictures and labels of the comparison: packed data sets, scenes through a map, boxes of what is seen."""

import io
import json
import tarfile

import cv2
import numpy as np
import pytest
import torch

from benchmarks.camera import archives, testbeds
from benchmarks.camera.testbeds import Geometry
from benchmarks.datasets.geometry import warp_labels


def test_boxes_are_where_the_objects_are():
    scene = testbeds.shape_scene('val', 0)
    side = scene.image.shape[0]
    same = Geometry().view((side, side), 'val', 0)
    found = testbeds.boxes_of(scene, same, (side, side), 1.0)
    assert found.tolist() == [[*instance.box, instance.label, 0] for instance in scene.instances]
    pushed = Geometry.parse('zoom:magnification=8').view((side, side), 'val', 0)
    near = testbeds.boxes_of(scene, pushed, (side, side), 1.0)
    assert len(near) < len(found) and near[:, 5].all()  # all that is left is a corner of something


def _packed(folder, name, files):
    with tarfile.open(folder / f'{name}.tar', 'w') as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(f'./{name}/{path}')
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _encoded(size):
    return cv2.imencode('.jpg', np.full((*size, 3), 200, np.uint8))[1].tobytes()


VOC_OBJECT = (
    '<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'
)
IDENTITY = Geometry().view((1, 1), 'val', 0)


def test_packed_boxes_are_those_of_their_annotations(tmp_path):
    objects = [('WBC', 101, 121, 300, 240), ('Platelets', 5, 5, 5, 5)]  # the second has no area
    xml = '<annotation>' + ''.join(VOC_OBJECT.format(*o) for o in objects) + '</annotation>'
    files = {
        'ImageSets/Main/val.txt': b'a\n',
        'Annotations/a.xml': xml.encode(),
        'JPEGImages/a.jpg': _encoded((480, 640)),
    }
    _packed(tmp_path, 'bccd', files)
    boxes = [dict(image_id=7, category_id=i, bbox=[30.0, 45, 60, 15]) for i in (1, 13)]  # the first category is dropped
    coco = json.dumps({'images': [dict(id=7, file_name='b.jpg')], 'annotations': boxes})
    _packed(tmp_path, 'chess_pieces', {'instances_val.json': coco.encode(), 'val/b.jpg': _encoded((343, 512))})
    for name, expected in (('bccd', [100 / 3, 40, 100, 80, 1, 0]), ('chess', [20, 30, 60, 40, 11, 0])):
        (picture, objects), bed = next(archives.archived_scenes(name, tmp_path, 'val')), testbeds.TESTBEDS[name]
        found = archives.outlined_boxes(name, objects, picture.shape, IDENTITY, bed.home, bed.scale)
        # picture and scene have the same centre
        margin = [(side / bed.scale - own) / 2 for side, own in zip(picture.shape[1::-1], bed.home[::-1], strict=True)]
        assert found.tolist() == [pytest.approx(np.array(expected) - [*margin, *margin, 0, 0], abs=1e-3)]


def test_another_cameras_pictures_are_as_they_were_taken(tmp_path):
    rng, png = np.random.default_rng(0), '.png'
    picture, mask = rng.integers(0, 256, (227, 320, 3), np.uint8), rng.integers(0, 7, (227, 320), np.uint8)
    files = {'train.txt': '\n'.join(f'{drive}/a' for drive in range(12)).encode(), 'val.txt': b'119/b'}
    for path in [*(f'train/{drive}/a' for drive in range(12)), 'val/119/b']:
        files[f'images/{path}.jpg'] = cv2.imencode(png, picture)[1].tobytes()
        files[f'masks/{path}.png'] = cv2.imencode(png, mask)[1].tobytes()
    _packed(tmp_path, 'idd_lite', files)
    testbeds.prepare('camvid', ['idd'], tmp_path, tmp_path)
    shown = [testbeds.load(tmp_path, 'camvid', 'idd', split, 'cpu') for split in testbeds.SPLITS]
    assert [len(split.labels) for split in shown] == [10, 2, 1]
    assert torch.equal(shown[2].labels[0], torch.from_numpy(mask))
    assert torch.equal(shown[2].pictures[0].permute(1, 2, 0), torch.from_numpy(picture))


def test_boxes_of_outlines_are_tight_after_a_map():
    size, view = (288, 384), Geometry.parse('fisheye:middle=2.0,rim=0.8').view((288, 384), 'val', 0)
    y, x = np.mgrid[:480, :640] + 0.5
    cell = np.array([[300.0, 60, 420, 140, 0], [560, 300, 640, 470, 0]])
    for row, found in zip(cell, archives.outlined_boxes('bccd', cell, (480, 640), view, size, 2.5), strict=True):
        middle, half = (row[:2] + row[2:4]) / 2, (row[2:4] - row[:2]) / 2
        mask = ((x - middle[0]) / half[0]) ** 2 + ((y - middle[1]) / half[1]) ** 2 < 1
        rows, columns = np.nonzero(warp_labels(mask.astype(np.uint8), view, size, 2.5) == 1)
        assert found[:4] == pytest.approx([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], abs=1.1)


def test_objects_hardly_seen_are_ignored():
    view = Geometry.parse('zoom:magnification=2.0').view((100, 100), 'val', 0)
    objects = np.array([[20.0, 40, 40, 60, 3], [10, 40, 30, 60, 4], [0, 0, 20, 20, 5]])  # 15 px of 20, 5 of 20, none
    found = archives.outlined_boxes('chess', objects, (100, 100), view, (100, 100), 1.0)
    assert found.tolist() == [[0, 30, 30, 70, 3, 0], [0, 30, 10, 70, 4, 0]]
    found = archives.outlined_boxes('chess', objects - [1, 0, 1, 0, 0], (100, 100), view, (100, 100), 1.0)
    assert found[:, 5].tolist() == [0, 1]


def test_mirrored_boxes_stay_on_their_objects():
    pictures = torch.zeros(1, 3, 8, 10, dtype=torch.uint8)
    pictures[0, :, 2:5, 1:4] = 255
    labels = torch.tensor([[[1.0, 2, 4, 5, 3, 0], [-1] * 6]])
    mirrored, boxes = testbeds.Boxes(pictures, labels).batch(torch.tensor([0]), torch.tensor([True]))
    x0, y0, x1, y1, label, hardly = boxes[0, 0].int().tolist()
    assert (label, hardly, boxes[0, 1, 4]) == (3, 0, -1)
    assert mirrored[0, :, y0:y1, x0:x1].eq(255).all() and mirrored.eq(255).sum() == 3 * 9
