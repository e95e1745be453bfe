# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""torchvision's ResNets, DeepLabV3, SSD300 on VGG-16, and Faster R-CNN, Mask R-CNN and RetinaNet on ResNet with FPN.

Names and layers: ``torchvision/models/{resnet,segmentation/deeplabv3}.py`` and
``torchvision/models/detection/{ssd,faster_rcnn,mask_rcnn,retinanet,anchor_utils}.py`` of
https://github.com/pytorch/vision, v0.20. Class 0 of its detectors is the background, and 91 outputs are COCO's category ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import checks
from .rules import Format, KeyMap, Rule, Source, names_with, select_rows

_RESNET = (
    Rule(r'((?:conv1|bn1|layer[1-4])\..*)', 'backbone.{1}'),
    Rule(r'fc\..*', None, 'the classifier'),  # fc.1.weight where somebody put dropout before it
)


def _resnet(source: Source) -> KeyMap:
    # Files without the classifier have been converted before, and may come from a Caffe network.
    original = any(name.startswith('fc.') for name in source)
    return KeyMap(_RESNET, {'backbone.style': 'pytorch', **checks.IMAGENET_RGB} if original else {})


_DEEPLAB = (
    Rule(r'(backbone\.(?:conv1|bn1|layer[1-4])\..*)', '{1}'),
    Rule(r'classifier\.0\.convs\.([0-3])\.0\.(.*)', 'decode_head.aspp_modules.{1}.conv.{2}'),
    Rule(r'classifier\.0\.convs\.([0-3])\.1\.(.*)', 'decode_head.aspp_modules.{1}.bn.{2}'),
    Rule(r'classifier\.0\.convs\.4\.1\.(.*)', 'decode_head.image_pool.1.conv.{1}'),
    Rule(r'classifier\.0\.convs\.4\.2\.(.*)', 'decode_head.image_pool.1.bn.{1}'),
    Rule(
        r'classifier\.0\.project\.0\.weight',
        'decode_head.project.conv.weight',
        'columns moved: the pooled branch comes first',
        lambda weight: weight.roll(weight.shape[1] // 5, 1),  # (256, 5 * 256, 1, 1), which torchvision has last
    ),
    Rule(r'classifier\.0\.project\.1\.(.*)', 'decode_head.project.bn.{1}'),
    Rule(r'classifier\.1\.(.*)', 'decode_head.bottleneck.conv.{1}'),
    Rule(r'classifier\.2\.(.*)', 'decode_head.bottleneck.bn.{1}'),
    Rule(r'classifier\.4\.(.*)', 'decode_head.conv_seg.{1}'),
    Rule(r'aux_classifier\.0\.(.*)', 'auxiliary_head.convs.0.conv.{1}'),
    Rule(r'aux_classifier\.1\.(.*)', 'auxiliary_head.convs.0.bn.{1}'),
    Rule(r'aux_classifier\.4\.(.*)', 'auxiliary_head.conv_seg.{1}'),
)


_DEEPLAB_MAP = KeyMap(
    _DEEPLAB,
    {
        'backbone.style': 'pytorch',
        'backbone.strides': (1, 2, 1, 1),
        'backbone.dilations': (1, 1, 2, 4),
        'backbone.contract_dilation': True,
        'decode_head.type': 'ProjectedASPPHead',  # which has torchvision's projection before its 3x3 convolution
        'decode_head.dilations': (1, 12, 24, 36),
        'decode_head.align_corners': False,
        'auxiliary_head.in_index': 2,
        **checks.IMAGENET_RGB,
    },
)

_NAMES = (
    'person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,'
    'parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,'
    'suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,'
    'tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,'
    'hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,'
    'cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,'
    'toothbrush'
)
COCO = tuple(_NAMES.split(','))
_COCO_OUTPUTS = 91  # category ids, 0 the background
_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


def _classes(outputs: int) -> tuple[list[int], tuple[str, ...], str]:
    """The file's indices of the network's classes, their names where they are known, and what is done to their rows."""
    if outputs != _COCO_OUTPUTS:
        return list(range(1, outputs)), (), 'rows of the classes'
    kept = [index for index in range(1, outputs) if index not in _UNUSED]
    return kept, COCO, f'{len(COCO)} of {_COCO_OUTPUTS} rows selected'


_SSD = (
    Rule(r'backbone\.scale_weight', 'neck.l2_norm.weight'),
    Rule(r'backbone\.(features\.\d+\..*)', 'backbone.{1}'),
    Rule(r'backbone\.extra\.0\.([135])\.(.*)', 'backbone.features.{1+23}.{2}'),
    Rule(r'backbone\.extra\.0\.7\.1\.(.*)', 'backbone.features.31.{1}'),
    Rule(r'backbone\.extra\.0\.7\.3\.(.*)', 'backbone.features.33.{1}'),
    Rule(r'backbone\.extra\.([1-4])\.([02])\.(.*)', 'neck.extra_layers.{1-1}.{2/2}.conv.{3}'),
)
_SSD_SIDES = [300 * scale for scale in (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)]
_SSD_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
_SSD_STEPS = (8, 16, 32, 64, 100, 300)
_SSD_STDS = (0.1, 0.1, 0.2, 0.2)


def _ssd_boxes(level: int) -> Tensor:
    """Width and height of a level's default boxes in pixels, (A, 2), before torchvision clips them."""
    side, larger = _SSD_SIDES[level], math.sqrt(_SSD_SIDES[level] * _SSD_SIDES[level + 1])
    sides = [(side, side), (larger, larger)]
    for ratio in _SSD_RATIOS[level]:
        long, short = side * math.sqrt(ratio), side / math.sqrt(ratio)
        sides += [(long, short), (short, long)]
    return torch.tensor(sides, dtype=torch.float64)


def _for_unclipped_boxes(sides: Tensor) -> Callable[[Tensor], Tensor]:
    """The regression of boxes, (A, 2), that torchvision clips to 300 pixels, for boxes that are not clipped.

    x = dx * std * w + centre and w' = w * exp(dw * std): with w larger by 1 / r, dx shrinks by r, dw falls by
    ln(1 / r) / std.
    """
    ratio = (300 / sides).clamp(max=1)

    def change(tensor: Tensor) -> Tensor:
        rows = tensor.unflatten(0, (-1, 4)).clone()  # (A, (x, y, w, h), ...)
        rows[:, :2] *= ratio.to(tensor).view(*ratio.shape, *[1] * (tensor.dim() - 1))
        if tensor.dim() == 1:
            rows[:, 2:] += (ratio.log() / torch.tensor(_SSD_STDS[2:], dtype=torch.float64)).to(tensor)
        return rows.flatten(0, 1)

    return change


def _ssd(source: Source) -> KeyMap:
    boxes = [_ssd_boxes(level) for level in range(len(_SSD_STEPS))]
    outputs = source['head.classification_head.module_list.0.weight'].shape[0] // len(boxes[0])
    kept, names, what = _classes(outputs)
    moved, rescaled = f'{what}, background moved to the end', 'rescaled for default boxes that are not clipped'
    scores, deltas = (rf'head\.{name}_head\.module_list\.' for name in ('classification', 'regression'))
    rules = (
        *_SSD,
        Rule(rf'{scores}(\d)\.(.*)', 'bbox_head.cls_convs.{1}.0.{2}', moved, select_rows([*kept, 0])),
        Rule(rf'{deltas}5\.(.*)', 'bbox_head.reg_convs.5.0.{1}', rescaled, _for_unclipped_boxes(boxes[5])),
        Rule(rf'{deltas}(\d)\.(.*)', 'bbox_head.reg_convs.{1}.0.{2}'),  # whose boxes are smaller than the picture
    )
    corners = [checks.boxes_of(sides, step / 2) for sides, step in zip(boxes, _SSD_STEPS, strict=True)]
    needed = {
        'bbox_head.anchor_generator': checks.Anchors(corners, 0.1),
        **checks.box_stds('bbox_head', _SSD_STDS),
        **checks.preprocessing([123.0, 117.0, 104.0], [1.0] * 3, True),
    }
    return KeyMap(rules, needed, names)


_FPN = (
    Rule(r'backbone\.body\.((?:conv1|bn1|layer[1-4])\..*)', 'backbone.{1}'),
    Rule(r'backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(weight|bias)', 'neck.lateral_convs.{1}.conv.{2}'),
    Rule(r'backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(weight|bias)', 'neck.fpn_convs.{1}.conv.{2}'),
)
_RCNN = (
    *_FPN,
    Rule(r'rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)', 'rpn_head.rpn_conv.{1}'),
    Rule(r'rpn\.head\.cls_logits\.(.*)', 'rpn_head.rpn_cls.{1}'),
    Rule(r'rpn\.head\.bbox_pred\.(.*)', 'rpn_head.rpn_reg.{1}'),
    Rule(r'roi_heads\.box_head\.fc([67])\.(.*)', 'roi_head.bbox_head.shared_fcs.{1-6}.{2}'),
    Rule(r'roi_heads\.mask_head\.mask_fcn([1-4])\.(.*)', 'roi_head.mask_head.convs.{1-1}.conv.{2}'),
    Rule(r'roi_heads\.mask_head\.([0-3])\.0\.(weight|bias)', 'roi_head.mask_head.convs.{1}.conv.{2}'),
    Rule(r'roi_heads\.mask_predictor\.conv5_mask\.(.*)', 'roi_head.mask_head.upsample.{1}'),
)
_RETINANET = (
    *_FPN,
    Rule(r'backbone\.fpn\.extra_blocks\.p([67])\.(.*)', 'neck.fpn_convs.{1-3}.conv.{2}'),
    Rule(r'head\.classification_head\.conv\.([0246])\.(weight|bias)', 'bbox_head.cls_convs.{1/2}.conv.{2}'),
    Rule(r'head\.classification_head\.conv\.([0-3])\.0\.(weight|bias)', 'bbox_head.cls_convs.{1}.conv.{2}'),
    Rule(r'head\.regression_head\.conv\.([0246])\.(weight|bias)', 'bbox_head.reg_convs.{1/2}.conv.{2}'),
    Rule(r'head\.regression_head\.conv\.([0-3])\.0\.(weight|bias)', 'bbox_head.reg_convs.{1}.conv.{2}'),
    Rule(r'head\.regression_head\.bbox_reg\.(.*)', 'bbox_head.retina_reg.{1}'),
)


def _of_resnet(outputs: int) -> checks.Needed:
    # The published COCO weights run with eps 0; who trained from them kept that, who began from ImageNet did not.
    eps = {0.0} if outputs == _COCO_OUTPUTS else {0.0, 1e-5}
    return {'backbone.style': 'pytorch', 'backbone.norm_cfg.eps': eps, **checks.IMAGENET_RGB}


def _rcnn(source: Source) -> KeyMap:
    outputs = source['roi_heads.box_predictor.cls_score.weight'].shape[0]
    kept, names, what = _classes(outputs)
    last, none = f'{what}, background moved to the end', f'{what}, background dropped'
    box, mask = r'roi_heads\.box_predictor\.', r'roi_heads\.mask_predictor\.mask_fcn_logits\.(.*)'
    rules = (
        *_RCNN,
        Rule(rf'{box}cls_score\.(.*)', 'roi_head.bbox_head.fc_cls.{1}', last, select_rows([*kept, 0])),
        Rule(rf'{box}bbox_pred\.(.*)', 'roi_head.bbox_head.fc_reg.{1}', none, select_rows(kept, 4)),
        Rule(mask, 'roi_head.mask_head.conv_logits.{1}', none, select_rows(kept)),
    )
    needed = {
        **_of_resnet(outputs),
        **checks.roi_align(aligned=False, sampling_ratio=2),
        **checks.rpn_anchors(1.0),  # torchvision rounds corners, half a pixel at most
        **checks.box_stds('rpn_head', (1.0,) * 4),
        **checks.box_stds('roi_head.bbox_head'),
    }
    return KeyMap(rules, needed, names)


def _retinanet(source: Source) -> KeyMap:
    outputs = source['head.classification_head.cls_logits.weight'].shape[0] // 9
    kept, names, what = _classes(outputs)
    logits = r'head\.classification_head\.cls_logits\.(.*)'
    classes = Rule(logits, 'bbox_head.retina_cls.{1}', f'{what}, background dropped', select_rows(kept))
    sizes = [[int(base * 2 ** (octave / 3)) for octave in range(3)] for base in (32, 64, 128, 256, 512)]
    needed = {
        **_of_resnet(outputs),
        **checks.extra_levels(source.get('backbone.fpn.extra_blocks.p6.weight')),
        **checks.box_stds('bbox_head', (1.0,) * 4),
        'bbox_head.anchor_generator': checks.cell_anchors(sizes, 2.0),
    }
    return KeyMap((*_RETINANET, classes), needed, names)


RESNET = Format(
    'a torchvision ResNet',
    names_with(('conv1.weight', 'bn1.weight', 'layer1.0.conv1.weight', 'layer4.0.conv1.weight')),
    _resnet,
)
DEEPLAB = Format(
    'torchvision DeepLabV3',
    names_with(('backbone.conv1.weight', 'classifier.0.convs.4.1.weight', 'classifier.0.project.0.weight')),
    lambda source: _DEEPLAB_MAP,
)
SSD = Format(
    'torchvision SSD300 on VGG-16',
    names_with(('backbone.scale_weight', 'head.classification_head.module_list.0.weight')),
    _ssd,
)
RCNN = Format(
    'torchvision Faster or Mask R-CNN with FPN',
    names_with(('backbone.body.conv1.weight', 'roi_heads.box_predictor.cls_score.weight')),
    _rcnn,
)
RETINANET = Format(
    'torchvision RetinaNet with FPN',
    names_with(('backbone.body.conv1.weight', 'head.classification_head.cls_logits.weight')),
    _retinanet,
)
