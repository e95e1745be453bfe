"""Packages of pure Python configs of the kind that mmdet and mmseg keep in ``mmdet/configs`` and ``mmseg/configs``, tiny.

What wheels of the frameworks leave out is rebuilt here in their manner: a part a file, classes as types, functions as
values, no scope. ``write`` puts them on a generated data set.
"""

from mmengine.hooks import Hook

CLASSES = ('star', 'ring', 'cross', 'worm', 'crescent', 'arrow')


class Watch(Hook):
    """A hook of a user's project, whose settings are a function and a type."""

    def __init__(self, function, dtype, limit, begin_epoch=0):
        self.function, self.dtype, self.limit = function, dtype, limit

    def before_train(self, runner):
        import torch

        assert self.function is torch.nn.functional.relu and self.dtype is torch.float16 and self.limit == float('inf')
        runner.logger.info('Watch: the function is the one that was named')


RUNTIME = """
from mmengine.hooks import CheckpointHook, DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.runner import LogProcessor
from mmengine.visualization import LocalVisBackend
from {scope}.visualization import {visualizer}

default_scope = None
default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, interval=1),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, by_epoch={by_epoch}, interval=1),
    sampler_seed=dict(type=DistSamplerSeedHook))
vis_backends = [dict(type=LocalVisBackend)]
visualizer = dict(type={visualizer}, vis_backends=vis_backends, name='visualizer')
log_processor = dict(type=LogProcessor, window_size=1, by_epoch={by_epoch})
load_from = None
resume = False
"""

DETECTOR = """
from mmcv.ops import RoIAlign, nms
from mmdet.models.backbones.resnet import ResNet
from mmdet.models.data_preprocessors.data_preprocessor import DetDataPreprocessor
from mmdet.models.dense_heads.rpn_head import RPNHead
from mmdet.models.detectors.faster_rcnn import FasterRCNN
from mmdet.models.losses.cross_entropy_loss import CrossEntropyLoss
from mmdet.models.losses.smooth_l1_loss import L1Loss
from mmdet.models.necks.fpn import FPN
from mmdet.models.roi_heads.bbox_heads.convfc_bbox_head import Shared2FCBBoxHead
from mmdet.models.roi_heads.roi_extractors.single_level_roi_extractor import SingleRoIExtractor
from mmdet.models.roi_heads.standard_roi_head import StandardRoIHead
from mmdet.models.task_modules.assigners.max_iou_assigner import MaxIoUAssigner
from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators.anchor_generator import AnchorGenerator
from mmdet.models.task_modules.samplers.random_sampler import RandomSampler
from torch.nn import BatchNorm2d

coder = dict(type=DeltaXYWHBBoxCoder, target_means=[0.0] * 4, target_stds=[1.0] * 4)
assigner = dict(
    type=MaxIoUAssigner, pos_iou_thr=0.5, neg_iou_thr=0.3, min_pos_iou=0.3, match_low_quality=True, ignore_iof_thr=-1)
sampler = dict(type=RandomSampler, num=32, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=True)
proposals = dict(nms_pre=50, max_per_img=20, nms=dict(type=nms, iou_threshold=0.7), min_bbox_size=0)
model = dict(
    type=FasterRCNN,
    data_preprocessor=dict(
        type=DetDataPreprocessor, mean=[114.0] * 3, std=[58.0] * 3, bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(
        type=ResNet, depth=18, base_channels=8, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type=BatchNorm2d, requires_grad=True), norm_eval=True, style='pytorch'),
    neck=dict(type=FPN, in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5),
    rpn_head=dict(
        type=RPNHead, in_channels=16, feat_channels=16,
        anchor_generator=dict(type=AnchorGenerator, scales=[4], ratios=[1.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=coder,
        loss_cls=dict(type=CrossEntropyLoss, use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type=L1Loss, loss_weight=1.0)),
    roi_head=dict(
        type=StandardRoIHead,
        bbox_roi_extractor=dict(
            type=SingleRoIExtractor, roi_layer=dict(type=RoIAlign, output_size=7, sampling_ratio=0),
            out_channels=16, featmap_strides=[4, 8, 16, 32]),
        bbox_head=dict(
            type=Shared2FCBBoxHead, in_channels=16, fc_out_channels=16, roi_feat_size=7, num_classes=6,
            bbox_coder=coder, reg_class_agnostic=False,
            loss_cls=dict(type=CrossEntropyLoss, use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type=L1Loss, loss_weight=1.0))),
    train_cfg=dict(
        rpn=dict(assigner=assigner, sampler=dict(sampler, add_gt_as_proposals=False), allowed_border=-1,
                 pos_weight=-1, debug=False),
        rpn_proposal=proposals,
        rcnn=dict(assigner=assigner, sampler=sampler, pos_weight=-1, debug=False)),
    test_cfg=dict(rpn=proposals, rcnn=dict(score_thr=0.05, nms=dict(type=nms, iou_threshold=0.5), max_per_img=10)))
"""

DETECTION_DATA = """
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import AspectRatioBatchSampler, VOCDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomFlip, Resize
from mmdet.evaluation import VOCMetric
from mmengine.dataset.sampler import DefaultSampler

dataset_type = VOCDataset
settings = dict(
    type=dataset_type, data_root='{data}/', metainfo=dict(classes={classes}, dataset_type=None),
    data_prefix=dict(sub_data_root='VOC2007/'))
train_pipeline = [
    dict(type=LoadImageFromFile), dict(type=LoadAnnotations, with_bbox=True),
    dict(type=Resize, scale=(96, 96), keep_ratio=True), dict(type=RandomFlip, prob=0.5), dict(type=PackDetInputs)]
test_pipeline = [
    dict(type=LoadImageFromFile), dict(type=Resize, scale=(96, 96), keep_ratio=True),
    dict(type=LoadAnnotations, with_bbox=True),
    dict(type=PackDetInputs, meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=True),
    batch_sampler=dict(type=AspectRatioBatchSampler),
    dataset=dict(settings, ann_file='VOC2007/ImageSets/Main/train.txt', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(settings, ann_file='VOC2007/ImageSets/Main/val.txt', test_mode=True, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type=VOCMetric, metric='mAP', eval_mode='area')
test_evaluator = val_evaluator
"""

DETECTION_SCHEDULE = """
from mmengine.optim.optimizer.optimizer_wrapper import OptimWrapper
from mmengine.optim.scheduler.lr_scheduler import LinearLR, MultiStepLR
from mmengine.runner.loops import EpochBasedTrainLoop, TestLoop, ValLoop
from torch.optim.sgd import SGD

train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=12, val_interval=1)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type=MultiStepLR, begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1)]
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.002, momentum=0.9, weight_decay=0.0001))
"""

SEGMENTOR = """
from mmseg.models.backbones import ResNetV1c
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.decode_heads import FCNHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.segmentors import EncoderDecoder
from torch.nn.modules.batchnorm import SyncBatchNorm as SyncBN

norm_cfg = dict(type=SyncBN, requires_grad=True)
data_preprocessor = dict(
    type=SegDataPreProcessor, size=(96, 96), mean=[114.0] * 3, std=[58.0] * 3, bgr_to_rgb=True, pad_val=0,
    seg_pad_val=255)
model = dict(
    type=EncoderDecoder,
    data_preprocessor=data_preprocessor,
    pretrained='open-mmlab://resnet50_v1c',
    backbone=dict(
        type=ResNetV1c, depth=18, base_channels=8, stem_channels=8, num_stages=4, out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), norm_cfg=norm_cfg, norm_eval=False, style='pytorch',
        contract_dilation=True),
    decode_head=dict(
        type=FCNHead, in_channels=64, in_index=3, channels=16, num_convs=2, concat_input=True, dropout_ratio=0.1,
        num_classes=7, norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type=CrossEntropyLoss, use_sigmoid=False, loss_weight=1.0)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
"""

SEGMENTATION_DATA = """
from mmcv.transforms.loading import LoadImageFromFile
from mmcv.transforms.processing import RandomFlip, RandomResize, Resize
from mmengine.dataset.sampler import DefaultSampler, InfiniteSampler
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms.formatting import PackSegInputs
from mmseg.datasets.transforms.loading import LoadAnnotations
from mmseg.datasets.transforms.transforms import PhotoMetricDistortion, RandomCrop
from mmseg.evaluation import IoUMetric

crop_size = (96, 96)
settings = dict(
    type=BaseSegDataset, data_root='{data}/VOC2007', img_suffix='.jpg', seg_map_suffix='.png',
    metainfo=dict(classes=('background', *{classes})),
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'))
train_pipeline = [
    dict(type=LoadImageFromFile), dict(type=LoadAnnotations),
    dict(type=RandomResize, scale=(96, 96), ratio_range=(0.5, 2.0), resize_type=Resize, keep_ratio=True),
    dict(type=RandomCrop, crop_size=crop_size, cat_max_ratio=0.75), dict(type=RandomFlip, prob=0.5),
    dict(type=PhotoMetricDistortion), dict(type=PackSegInputs)]
test_pipeline = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations), dict(type=PackSegInputs)]
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type=InfiniteSampler, shuffle=True),
    dataset=dict(settings, ann_file='ImageSets/Segmentation/train.txt', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(settings, ann_file='ImageSets/Segmentation/val.txt', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type=IoUMetric, iou_metrics=['mIoU'])
test_evaluator = val_evaluator
"""

SEGMENTATION_SCHEDULE = """
from mmengine.optim.optimizer.optimizer_wrapper import OptimWrapper
from mmengine.optim.scheduler.lr_scheduler import PolyLR
from mmengine.runner.loops import IterBasedTrainLoop, TestLoop, ValLoop
from torch.optim.sgd import SGD

optimizer = dict(type=SGD, lr=0.01, momentum=0.9, weight_decay=0.0005)
optim_wrapper = dict(type=OptimWrapper, optimizer=optimizer, clip_grad=None)
param_scheduler = [dict(type=PolyLR, eta_min=1e-4, power=0.9, begin=0, end=8, by_epoch=False)]
train_cfg = dict(type=IterBasedTrainLoop, max_iters=8, val_interval=4)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
"""

# A user's project: a segmentor of mmseg with parts of mmdet, and a hook of its own.
MIXED = """
import torch
import torch.nn.functional as F
from math import inf
from mmdet.models.backbones import ResNet
from mmengine.config import read_base
from mmengine.model.weight_init import PretrainedInit
from mmseg.models.losses import DiceLoss
from torch.nn import BatchNorm2d, Hardtanh
from tests.test_config.pure_python import Watch

with read_base():
    from ..seg.fcn_r18_d8 import *

model.merge(dict(
    backbone=dict(
        _delete_=True, type=ResNet, depth=18, base_channels=8, norm_cfg=dict(type=BatchNorm2d),
        init_cfg=dict(type=PretrainedInit, checkpoint='torchvision://resnet18')),
    pretrained=None,
    decode_head=dict(norm_cfg=dict(type=BatchNorm2d), act_cfg=dict(type=Hardtanh), loss_decode=dict(
        _delete_=True, type=DiceLoss))))
optimizer.update(type=torch.optim.AdamW)
optimizer.pop('momentum')
optim_wrapper.merge(dict(_delete_=True, type=OptimWrapper, optimizer=optimizer, accumulative_counts=1))
custom_hooks = [dict(type=Watch, function=F.relu, dtype=torch.float16, limit=inf)]
"""


def _leaf(*parts):
    lines = ''.join(f'    from ._base_.{part} import *\n' for part in parts)
    return f'from mmengine.config import read_base\n\nwith read_base():\n{lines}'


def write(folder, data):
    """The three baselines' configs, by the name of their kind."""
    parts = ('model', 'dataset', 'schedule', 'runtime')
    files = {
        'det/_base_/model.py': DETECTOR,
        'det/_base_/dataset.py': DETECTION_DATA.format(data=data, classes=CLASSES),
        'det/_base_/schedule.py': DETECTION_SCHEDULE,
        'det/_base_/runtime.py': RUNTIME.format(scope='mmdet', visualizer='DetLocalVisualizer', by_epoch=True),
        'det/faster_rcnn_r18_fpn_1x.py': _leaf(*parts),
        'seg/_base_/model.py': SEGMENTOR,
        'seg/_base_/dataset.py': SEGMENTATION_DATA.format(data=data, classes=CLASSES),
        'seg/_base_/schedule.py': SEGMENTATION_SCHEDULE,
        'seg/_base_/runtime.py': RUNTIME.format(scope='mmseg', visualizer='SegLocalVisualizer', by_epoch=False),
        'seg/fcn_r18_d8.py': _leaf(*parts),
        'mixed/fcn-r18_mixed.py': MIXED,  # a name that no import statement can say
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {name.split('/')[0]: folder / name for name in files if '_base_' not in name}
