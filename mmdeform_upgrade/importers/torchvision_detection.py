# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""torchvision's detectors: SSD300 on VGG-16, and Faster R-CNN, Mask R-CNN and RetinaNet on ResNet with FPN.

Names and layers: ``torchvision/models/detection/{ssd,faster_rcnn,mask_rcnn,retinanet,anchor_utils}.py`` of
https://github.com/pytorch/vision, v0.20. Their class 0 is the background, and 91 outputs are COCO's category ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError
from .base import Check, Format, Imported, names_with
from .checks import (
    IMAGENET_RGB,
    STYLE_PYTORCH,
    anchors,
    box_stds,
    cell_anchors,
    extra_levels,
    norm_eps,
    preprocessing,
    roi_align,
)
from .table import Rule, apply_rules, select_rows

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
_SSD_SIDES = [300 * scale for scale in (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)]
_SSD_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
_SSD_STEPS = (8, 16, 32, 64, 100, 300)
_BOX_STDS = (0.1, 0.1, 0.2, 0.2)


def _foreground(outputs: int) -> list[int]:
    """The file's indices of the network's classes."""
    return [index for index in range(1, outputs) if outputs != _COCO_OUTPUTS or index not in _UNUSED]


def _classes(outputs: int) -> tuple[str, ...]:
    """Names of the classes, where the number of outputs leaves no doubt about them."""
    return COCO if outputs == _COCO_OUTPUTS else ()


def _selected(outputs: int, background: str) -> str:
    what = f'{len(COCO)} of {_COCO_OUTPUTS} rows selected' if outputs == _COCO_OUTPUTS else 'rows of the classes'
    return f'{what}, background {background}'


# ---- SSD300
_SSD = (
    Rule(r'backbone\.scale_weight', 'neck.l2_norm.weight'),
    Rule(r'backbone\.(features\.\d+\..*)', 'backbone.{1}'),
    Rule(r'backbone\.extra\.0\.([135])\.(.*)', 'backbone.features.{1+23}.{2}'),
    Rule(r'backbone\.extra\.0\.7\.1\.(.*)', 'backbone.features.31.{1}'),
    Rule(r'backbone\.extra\.0\.7\.3\.(.*)', 'backbone.features.33.{1}'),
    Rule(r'backbone\.extra\.([1-4])\.([02])\.(.*)', 'neck.extra_layers.{1-1}.{2/2}.conv.{3}'),
)


def _ssd_sides(level: int) -> list[tuple[float, float]]:
    """Width and height of a level's default boxes in pixels, before torchvision clips them."""
    side, larger = _SSD_SIDES[level], math.sqrt(_SSD_SIDES[level] * _SSD_SIDES[level + 1])
    sides = [(side, side), (larger, larger)]
    for ratio in _SSD_RATIOS[level]:
        long, short = side * math.sqrt(ratio), side / math.sqrt(ratio)
        sides += [(long, short), (short, long)]
    return sides


def _for_unclipped_boxes(level: int) -> Callable[[Tensor], Tensor] | None:
    """The regression of a box that torchvision clips to 300 pixels, for one that is not clipped.

    x = dx * std * w + centre and w' = w * exp(dw * std): with w larger by 1 / r, dx shrinks by r, dw falls by
    ln(1 / r) / std.
    """
    if max(map(max, _ssd_sides(level))) <= 300:
        return None

    def change(tensor: Tensor) -> Tensor:
        rows = tensor.reshape(-1, 4, *tensor.shape[1:]).clone()  # (A, (x, y, w, h), ...)
        for anchor, sides in enumerate(_ssd_sides(level)):
            for axis, side in enumerate(sides):
                ratio = min(1.0, 300 / side)
                rows[anchor, axis] *= ratio
                if tensor.dim() == 1:
                    rows[anchor, axis + 2] += math.log(ratio) / _BOX_STDS[axis + 2]
        return rows.reshape(tensor.shape)

    return change


def _ssd_head_rules(level: int, outputs: int) -> tuple[Rule, Rule]:
    theirs, ours = rf'_head\.module_list\.{level}\.(.*)', f'_convs.{level}.0.{{1}}'
    order = select_rows([*_foreground(outputs), 0], len(_ssd_sides(level)))
    rescaled = 'rescaled for default boxes that are not clipped to the picture'
    return (
        Rule(rf'head\.classification{theirs}', f'bbox_head.cls{ours}', _selected(outputs, 'moved to the end'), order),
        Rule(rf'head\.regression{theirs}', f'bbox_head.reg{ours}', rescaled, _for_unclipped_boxes(level)),
    )


def _ssd_anchors() -> list[Tensor]:
    sides = [torch.tensor(_ssd_sides(level)) for level in range(len(_SSD_STEPS))]
    return [torch.cat([step / 2 - wh / 2, step / 2 + wh / 2], 1) for step, wh in zip(_SSD_STEPS, sides, strict=True)]


def _convert_ssd(source: Mapping[str, Tensor]) -> Imported:
    outputs = source['head.classification_head.module_list.0.weight'].shape[0] // len(_ssd_sides(0))
    rules = [rule for level in range(len(_SSD_STEPS)) for rule in _ssd_head_rules(level, outputs)]
    checks = (
        preprocessing([123.0, 117.0, 104.0], [1.0] * 3, True),
        anchors('bbox_head', _ssd_anchors(), 0.1),
        box_stds('bbox_head', _BOX_STDS),
    )
    return apply_rules(SSD.name, (*_SSD, *rules), source, classes=_classes(outputs), checks=checks)


# ---- ResNet with FPN
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


def _rounding(outputs: int) -> Check:
    # The published COCO weights run with eps 0; who trained from them kept that, who began from ImageNet did not.
    return norm_eps([0.0] if outputs == _COCO_OUTPUTS else [0.0, 1e-5])


def _rcnn_rules(outputs: int) -> tuple[Rule, ...]:
    classes, box = _foreground(outputs), r'roi_heads\.box_predictor\.'
    last, none = _selected(outputs, 'moved to the end'), _selected(outputs, 'dropped')
    mask = r'roi_heads\.mask_predictor\.mask_fcn_logits\.(.*)'
    return (
        Rule(rf'{box}cls_score\.(.*)', 'roi_head.bbox_head.fc_cls.{1}', last, select_rows([*classes, 0])),
        Rule(rf'{box}bbox_pred\.(.*)', 'roi_head.bbox_head.fc_reg.{1}', none, select_rows(classes, width=4)),
        Rule(mask, 'roi_head.mask_head.conv_logits.{1}', none, select_rows(classes)),
    )


def _convert_rcnn(source: Mapping[str, Tensor]) -> Imported:
    outputs = source['roi_heads.box_predictor.cls_score.weight'].shape[0]
    checks = (
        IMAGENET_RGB,
        STYLE_PYTORCH,
        _rounding(outputs),
        roi_align(False, 2),
        # torchvision rounds the corners of its anchors, half a pixel at most.
        anchors('rpn_head', cell_anchors([[32], [64], [128], [256], [512]]), 1.0),
        box_stds('rpn_head', (1.0,) * 4),
        box_stds('roi_head.bbox_head'),
    )
    rules = (*_RCNN, *_rcnn_rules(outputs))
    return apply_rules(RCNN.name, rules, source, classes=_classes(outputs), checks=checks)


def _convert_retinanet(source: Mapping[str, Tensor]) -> Imported:
    rows = source['head.classification_head.cls_logits.weight'].shape[0]
    if rows % 9:
        raise CheckpointError(
            f'it looks like {RETINANET.name}, and its {rows} class outputs are no multiple of 9 anchors'
        )
    outputs = rows // 9
    what, order = _selected(outputs, 'dropped'), select_rows(_foreground(outputs), 9)
    classes = Rule(r'head\.classification_head\.cls_logits\.(.*)', 'bbox_head.retina_cls.{1}', what, order)
    sizes = [[int(base * 2 ** (octave / 3)) for octave in range(3)] for base in (32, 64, 128, 256, 512)]
    p6 = source.get('backbone.fpn.extra_blocks.p6.weight', torch.empty(256, 256))
    checks = (
        IMAGENET_RGB,
        STYLE_PYTORCH,
        _rounding(outputs),
        anchors('bbox_head', cell_anchors(sizes), 2.0),
        *extra_levels('on_output' if p6.shape[0] == p6.shape[1] else 'on_input'),
        box_stds('bbox_head', (1.0,) * 4),
    )
    return apply_rules(RETINANET.name, (*_RETINANET, classes), source, classes=_classes(outputs), checks=checks)


SSD = Format(
    'torchvision SSD300 on VGG-16',
    names_with(('backbone.scale_weight', 'head.classification_head.module_list.0.weight')),
    _convert_ssd,
)
RCNN = Format(
    'torchvision Faster or Mask R-CNN with FPN',
    names_with(('backbone.body.conv1.weight', 'roi_heads.box_predictor.cls_score.weight')),
    _convert_rcnn,
)
RETINANET = Format(
    'torchvision RetinaNet with FPN',
    names_with(('backbone.body.conv1.weight', 'head.classification_head.cls_logits.weight')),
    _convert_retinanet,
)
