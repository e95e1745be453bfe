"""A data set through a map: each layout, exact boxes, and what is refused."""

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks.datasets.warp_dataset import main, parse_map
from mmdeform_upgrade.errors import DataError


def tight(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize('text', ['fisheye', 'zoom:magnification=1.6', 'anisotropic:small=0.8..1.0', 'perspective'])
def test_boxes_of_voc_are_those_of_the_warped_objects(shapes, tmp_path, text, capsys):
    main(['voc', str(shapes / 'VOC2007'), str(tmp_path / 'out'), '--map', text])
    assert 'objects from masks' in capsys.readouterr().out
    out = tmp_path / 'out'
    objects = 0
    for file in sorted((out / 'Annotations').iterdir()):
        index = np.asarray(Image.open(out / 'SegmentationObject' / f'{file.stem}.png'))
        original = ET.parse(shapes / 'VOC2007/Annotations' / file.name).getroot()
        kept = iter(ET.parse(file).getroot().findall('object'))
        for number in range(1, len(original.findall('object')) + 1):
            if not (index == number).any():
                continue
            box = next(kept).find('bndbox')
            found = [int(box.findtext(tag)) for tag in ('xmin', 'ymin', 'xmax', 'ymax')]
            assert found == np.add(tight(index == number), [1, 1, 0, 0]).tolist()
            objects += 1
    assert objects > 20
    assert (out / 'ImageSets/Main/train.txt').read_text() == (shapes / 'VOC2007/ImageSets/Main/train.txt').read_text()
    record = json.loads((out / 'warp.json').read_text())
    assert record['map'] == text.partition(':')[0] and record['counts']['pictures'] == len(
        list((out / 'JPEGImages').iterdir())
    )
    assert cv2.imread(str(out / 'contact_sheet.jpg')).shape[1] == 880


def coco(root, name='a.png'):
    """One picture with an object that has a polygon, one that has nothing but a box, and one that is lost."""
    (root / 'annotations').mkdir(parents=True)
    (root / 'pictures').mkdir()
    cv2.imwrite(str(root / 'pictures' / name), np.full((60, 80, 3), 90, np.uint8))
    polygon = [20, 10, 50, 10, 50, 40, 20, 40]
    annotations = [
        dict(id=1, image_id=7, category_id=1, bbox=[20, 10, 30, 30], area=900, segmentation=[polygon], iscrowd=0),
        dict(id=2, image_id=7, category_id=1, bbox=[30, 20, 20, 20], area=400, iscrowd=0),
        dict(id=3, image_id=7, category_id=1, bbox=[0, 0, 5, 5], area=25, iscrowd=0),
    ]
    held = dict(images=[dict(id=7, file_name=name, height=60, width=80)], categories=[dict(id=1, name='thing')])
    (root / 'annotations/train.json').write_text(json.dumps({**held, 'annotations': annotations}))


def test_coco_boxes_areas_and_masks_follow(tmp_path):
    coco(tmp_path / 'in')
    main(['coco', str(tmp_path / 'in'), str(tmp_path / 'out'), '--map', 'zoom:magnification=2'])
    held = json.loads((tmp_path / 'out/annotations/train.json').read_text())
    first, second = held['annotations']
    assert first['bbox'] == [0, 0, 60, 50] and second['bbox'] == [20, 10, 40, 40]  # x' = 2 (x - 40) + 40
    assert coco_mask.decode(first['segmentation']).sum() == first['area'] == 3000
    assert cv2.imread(str(tmp_path / 'out/pictures/a.png')).shape == (60, 80, 3)
    record = json.loads((tmp_path / 'out/warp.json').read_text())
    assert record['counts']['objects out of sight'] == 1 and record['counts']['objects from boxes'] == 2


def test_what_is_hardly_seen_is_not_asked_for(tmp_path):
    coco(tmp_path / 'in')
    main(['coco', str(tmp_path / 'in'), str(tmp_path / 'out'), '--map', 'zoom:magnification=4', '--size', '20', '20'])
    held = json.loads((tmp_path / 'out/annotations/train.json').read_text())
    assert {annotation['iscrowd'] for annotation in held['annotations']} == {1}
    assert held['images'][0]['height'] == 20


@pytest.mark.parametrize('folders', [('train', 'trainannot'), ('images', 'masks')])
def test_masks_follow_their_pictures(tmp_path, folders):
    for folder in folders:
        (tmp_path / 'in' / folder).mkdir(parents=True)
    picture, mask = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    picture[10:20, 20:40], mask[10:20, 20:40] = 255, 5
    cv2.imwrite(str(tmp_path / 'in' / folders[0] / 'x.png'), picture)
    cv2.imwrite(str(tmp_path / 'in' / folders[1] / 'x.png'), mask)
    main(['masks', str(tmp_path / 'in'), str(tmp_path / 'out'), '--map', 'zoom:magnification=0.5'])
    found = cv2.imread(str(tmp_path / 'out' / folders[1] / 'x.png'), -1)
    assert set(np.unique(found)) == {0, 5, 255} and (found == 5).sum() == 50
    assert (found[0] == 255).all() and found.shape == (40, 60)


def test_the_same_seed_draws_the_same_views(tmp_path):
    coco(tmp_path / 'in')
    texts = []
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        main(['coco', str(tmp_path / 'in'), str(tmp_path / name), '--map', 'mixed', '--seed', str(seed)])
        texts.append((tmp_path / name / 'annotations/train.json').read_text())
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    'text,message',
    [
        ('fish', "there is no map 'fish'; there are identity, zoom"),
        ('zoom:factor=2', "zoom has no parameter 'factor'; it has magnification"),
        ('zoom:magnification=two', "magnification='two' is not a number"),
        ('zoom:magnification=-1', 'expected one number above zero'),
        ('anisotropic:small=1', r'expected LOW\.\.HIGH above zero'),
    ],
)
def test_a_map_that_is_none_is_refused(text, message):
    with pytest.raises(DataError, match=message):
        parse_map(text)


def test_refused_sets_leave_nothing(tmp_path):
    coco(tmp_path / 'in')
    (tmp_path / 'in/pictures/a.png').write_bytes(b'no picture')
    with pytest.raises(DataError, match='not a picture that OpenCV can read'):
        main(['coco', str(tmp_path / 'in'), str(tmp_path / 'out'), '--map', 'zoom'])
    with pytest.raises(DataError, match='neither a folder X beside Xannot, nor images beside masks'):
        main(['masks', str(tmp_path / 'in'), str(tmp_path / 'out'), '--map', 'zoom'])
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ['in']


def test_sets_that_cannot_be_read_as_coco_say_what_is_missing(tmp_path):
    coco(tmp_path / 'in')
    command = ['coco', str(tmp_path / 'in'), str(tmp_path / 'out'), '--map', 'zoom']
    file = tmp_path / 'in/annotations/train.json'
    held = json.loads(file.read_text())
    (tmp_path / 'in/val').mkdir()
    shutil.copy(tmp_path / 'in/pictures/a.png', tmp_path / 'in/val/a.png')
    with pytest.raises(DataError, match=r'a\.png may be .*pictures.a\.png, .*val.a\.png; give each split a folder'):
        main(command)
    held['images'][0]['file_name'] = 'val/a.png'
    held['annotations'].append(dict(id=9, image_id=7, caption='a square'))
    file.write_text(json.dumps(held))
    with pytest.raises(DataError, match='only boxes and masks are warped'):
        main(command)
    file.rename(tmp_path / 'in/train.json')
    with pytest.raises(DataError, match=r'there is no annotations/\*\.json'):
        main(command)
    assert not (tmp_path / 'out').exists()
