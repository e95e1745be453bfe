# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The datasets of mmdet and mmseg read what was composed."""

import json

import numpy as np
import pytest

from benchmarks.datasets import SHAPE_CLASSES


@pytest.fixture(scope='module')
def mmdet():
    module = pytest.importorskip('mmdet')
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    return module


def boxes_of(dataset):
    """Returns (labels, boxes, ignored) of every picture that the dataset serves."""
    found = []
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        boxes = [tuple(instance['bbox']) for instance in info['instances']]
        labels = [instance['bbox_label'] for instance in info['instances']]
        found.append((labels, boxes, [instance['ignore_flag'] for instance in info['instances']]))
    return found


def load_pipeline(with_mask):
    return [
        {'type': 'mmdet.LoadImageFromFile'},
        {'type': 'mmdet.LoadAnnotations', 'with_bbox': True, 'with_mask': with_mask},
        {'type': 'mmdet.PackDetInputs'},
    ]


def voc_dataset(root, split):
    from mmdet.datasets import VOCDataset

    return VOCDataset(
        data_root=str(root),
        ann_file=f'VOC2007/ImageSets/Main/{split}.txt',
        data_prefix={'sub_data_root': 'VOC2007/'},
        metainfo={'classes': SHAPE_CLASSES},
        pipeline=load_pipeline(False),
    )


def coco_dataset(root, split):
    from mmdet.datasets import CocoDataset

    return CocoDataset(
        data_root=str(root),
        ann_file=f'annotations/{split}.json',
        data_prefix={'img': 'VOC2007/JPEGImages/'},
        metainfo={'classes': SHAPE_CLASSES},
        pipeline=load_pipeline(True),
    )


def test_voc_and_coco_datasets_agree(mmdet, shapes):
    for split in ('train', 'val', 'test'):
        voc, coco = boxes_of(voc_dataset(shapes, split)), boxes_of(coco_dataset(shapes, split))
        assert len(voc) == len(coco) > 0
        for (labels, boxes, ignored), other in zip(voc, coco, strict=True):
            assert labels == other[0]
            assert ignored == other[2]
            # VOC's last pixel belongs to the box, COCO's far edge lies behind it.
            assert boxes == [(x0, y0, x1 - 1, y1 - 1) for x0, y0, x1, y1 in other[1]]


def test_pipelines_deliver_pictures_boxes_and_masks(mmdet, shapes):
    item = voc_dataset(shapes, 'train')[0]
    assert tuple(item['inputs'].shape) == (3, 96, 96)
    item = coco_dataset(shapes, 'train')[0]
    instances = item['data_samples'].gt_instances
    assert len(instances) > 0
    for mask, box in zip(instances.masks.masks, instances.bboxes.tensor.tolist(), strict=True):
        rows, cols = np.nonzero(mask)
        assert [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1] == box


def test_voc_metric_scores_the_annotations_themselves_as_perfect(mmdet, shapes):
    from mmdet.evaluation.functional import eval_map

    truth, detections = [], []
    for labels, boxes, _ in boxes_of(voc_dataset(shapes, 'train')):
        boxes, labels = np.array(boxes, np.float32), np.array(labels)
        truth.append({'bboxes': boxes, 'labels': labels})
        scored = np.hstack([boxes, np.ones((len(boxes), 1), np.float32)])
        detections.append([scored[labels == i] for i in range(len(SHAPE_CLASSES))])
    names = list(SHAPE_CLASSES)
    mean_ap, _ = eval_map(detections, truth, dataset=names, logger='silent')
    assert mean_ap == pytest.approx(1)


def test_mmseg_dataset_reads_the_masks(shapes):
    pytest.importorskip('mmseg')
    from mmseg.datasets import BaseSegDataset
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    meta = json.loads((shapes / 'meta.json').read_text())
    # PascalVOCDataset only takes subsets of VOC's own classes; its base class reads the layout.
    dataset = BaseSegDataset(
        img_suffix='.jpg',
        seg_map_suffix='.png',
        data_root=str(shapes),
        ann_file='VOC2007/ImageSets/Segmentation/train.txt',
        data_prefix={
            'img_path': 'VOC2007/JPEGImages',
            'seg_map_path': 'VOC2007/SegmentationClass',
        },
        metainfo={'classes': ('background', *SHAPE_CLASSES)},
        pipeline=[
            {'type': 'mmseg.LoadImageFromFile'},
            {'type': 'mmseg.LoadAnnotations'},
            {'type': 'mmseg.PackSegInputs'},
        ],
    )
    assert len(dataset) == meta['counts']['train']['images']
    seen = set()
    for item in dataset:
        seen |= set(item['data_samples'].gt_sem_seg.data.unique().tolist())
    present = {i + 1 for i, n in enumerate(meta['counts']['train']['per_class'].values()) if n}
    assert seen == {0} | present
