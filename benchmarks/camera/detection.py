# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""mmdet's detectors of the comparison, their loss and their average precision."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from mmdet.evaluation import CocoMetric
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from torch import Tensor, nn

from . import networks
from .testbeds import Boxes
from .training import evaluating


def config(network: str, classes: int) -> dict:
    """The mmdet config of ``'fcos-r18w32s2'``, ``'ssd-r18w32s4'`` or ``'retina-r18w32s4'``.

    FCOS has one level, of stride 8, and towers of one convolution; SSD and RetinaNet have the levels of a ResNet of four
    stages and one or two more.
    """
    kind, _, body = network.partition('-')
    backbone = networks.config(body, classes)['backbone']
    stages, last = backbone['num_stages'], networks.channels(backbone)
    if kind == 'fcos':
        head, neck = _fcos(last, classes), None
    else:
        channels = [last // 2**stage for stage in reversed(range(stages - 1))]
        backbone |= dict(out_indices=tuple(range(1, stages)), strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1))
        if kind == 'ssd':
            head = _ssd([*channels, 128], classes)
            neck = dict(type='WideSSDNeck', in_channels=channels, out_channels=(128,), min_channels=64)
        else:
            head = _retina(classes)
            neck = dict(type='FPN', in_channels=channels, out_channels=64, num_outs=4, add_extra_convs='on_input')
    detector = dict(type='SingleStageDetector', backbone=backbone, neck=neck, bbox_head=head)
    return detector | dict(train_cfg=_TRAIN | _SSD_TRAIN if kind == 'ssd' else _TRAIN, test_cfg=_TEST)


_TRAIN: dict[str, Any] = dict(
    assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0.0, ignore_iof_thr=-1),
    sampler=dict(type='PseudoSampler'),
    allowed_border=-1,
    pos_weight=-1,
    debug=False,
)
_SSD_TRAIN = dict(
    assigner=_TRAIN['assigner'] | dict(neg_iou_thr=0.5, gt_max_assign_all=False), smoothl1_beta=1.0, neg_pos_ratio=3
)
_TEST = dict(nms_pre=300, min_bbox_size=0, score_thr=0.02, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)


def _fcos(channels: int, classes: int) -> dict:
    return dict(
        type='FCOSHead',
        num_classes=classes,
        in_channels=channels,
        feat_channels=64,
        stacked_convs=1,
        strides=[8],
        regress_ranges=((-1, 1e8),),
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        conv_bias=True,
        norm_cfg=dict(type='BN', requires_grad=True),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
    )


def _ssd(channels: list[int], classes: int) -> dict:
    return dict(
        type='PredictableSSDHead',
        num_classes=classes,
        in_channels=channels,
        anchor_generator=dict(
            type='SSDAnchorGenerator',
            scale_major=False,
            input_size=128,
            strides=[8, 16, 32, 64],
            ratios=[[2], [2], [2], [2]],
            min_sizes=[24.0, 40.0, 64.0, 96.0],
            max_sizes=[40.0, 64.0, 96.0, 128.0],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
    )


def _retina(classes: int) -> dict:
    return dict(
        type='RetinaHead',
        num_classes=classes,
        in_channels=64,
        feat_channels=64,
        stacked_convs=1,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=3,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0),
    )


class Detector(networks.Network):
    """mmdet's backbone, neck and head, from uint8 pictures (N, 3, H, W) to the head's maps."""

    def __init__(self, network: str, classes: int):
        parts = networks.built(ConfigDict(config(network, classes), _scope_='mmdet'))
        super().__init__(network, parts.backbone)
        self.neck = parts.neck if parts.with_neck else nn.Identity()
        self.bbox_head = parts.bbox_head

    def forward(self, pictures: Tensor) -> tuple:
        maps = self.bbox_head(self.neck(self.backbone(self.normalized(pictures))))
        return tuple([level.float() for level in levels] for levels in maps)  # losses are float32's under autocast, too


def detection_loss(model: nn.Module, pictures: Tensor, boxes: Tensor) -> Tensor:
    """Sum of the head's losses over the objects that are well enough seen."""
    seen = (boxes[..., 4] >= 0) & (boxes[..., 5] == 0)
    boxes = boxes.take_along_dim(
        (~seen).byte().argsort(dim=1, stable=True)[..., None], 1
    )  # those that are seen come first
    labels, counts = boxes[..., 4].long(), seen.sum(1).tolist()  # the host waits once, and not for every picture
    truth = [InstanceData(bboxes=boxes[i, :count, :4], labels=labels[i, :count]) for i, count in enumerate(counts)]
    losses = model.bbox_head.loss_by_feat(*model(pictures), truth, _metas(pictures))
    parts = [part for value in losses.values() for part in (value if isinstance(value, list) else [value])]
    return torch.stack([part.sum() for part in parts]).sum()


def _metas(pictures: Tensor) -> list[dict]:
    size = tuple(pictures.shape[2:])
    return [dict(img_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0)) for _ in pictures]


def average_precision(model: nn.Module, data: Boxes, classes: int, batch: int = 32) -> dict[str, float]:
    """COCO's AP, AP50 and AP75 in per cent, by mmdet's ``CocoMetric``."""
    MMLogger.get_current_instance().setLevel('ERROR')
    metric = CocoMetric(metric='bbox')
    metric.dataset_meta = {'classes': tuple(map(str, range(classes)))}
    with torch.no_grad(), evaluating(model):
        for first in range(0, len(data.labels), batch):
            pictures = data.pictures[first : first + batch]
            found = model.bbox_head.predict_by_feat(*model(pictures), batch_img_metas=_metas(pictures), rescale=False)
            metric.process({}, [_sample(first + i, pictures, data.labels[first + i], f) for i, f in enumerate(found)])
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
        scores = metric.evaluate(len(data.labels))
    keys = {'ap': 'coco/bbox_mAP', 'ap50': 'coco/bbox_mAP_50', 'ap75': 'coco/bbox_mAP_75'}
    return {name: 100 * scores.get(key, 0.0) for name, key in keys.items()}  # no scores where nothing was found


def _sample(index: int, pictures: Tensor, boxes: Tensor, found: InstanceData) -> dict[str, Any]:
    instances = [
        dict(bbox=row[:4], bbox_label=int(row[4]), ignore_flag=int(row[5])) for row in boxes.tolist() if row[4] >= 0
    ]
    predicted = {name: getattr(found, name).cpu() for name in ('bboxes', 'scores', 'labels')}
    return dict(img_id=index, ori_shape=tuple(pictures.shape[2:]), pred_instances=predicted, instances=instances)
