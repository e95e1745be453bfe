# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""torchvision's detectors: SSD300 on VGG-16, and Faster R-CNN, Mask R-CNN and RetinaNet on ResNet with FPN.

Names and layers: ``torchvision/models/detection/{ssd,faster_rcnn,mask_rcnn,retinanet,anchor_utils}.py`` of
https://github.com/pytorch/vision, v0.20. Their class 0 is the background, and 91 outputs are COCO's category ids.
"""

from __future__ import annotations

import math
from typing import Callable, List, Mapping, Sequence, Tuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from .base import Check, Format, Imported
from .checks import anchors, cell_anchors, norm_eps, preprocessing, roi_align, setting
from .coco import OUTPUTS, classes_of, foreground_rows, what_was_selected
from .table import Rule, apply_rules, select_rows
from .torchvision import IMAGENET_RGB, STYLE_PYTORCH

_RATIOS = (0.5, 1.0, 2.0)
_SSD_SIDES = [300 * scale for scale in (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)]
_SSD_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
_SSD_STEPS = (8, 16, 32, 64, 100, 300)
_BOX_STDS = (0.1, 0.1, 0.2, 0.2)


# ---- SSD300
def _is_ssd(names: Mapping[str, Tensor]) -> bool:
    return {'backbone.scale_weight', 'head.classification_head.module_list.0.weight'} <= names.keys()


def _ssd_sides(level: int) -> List[Tuple[float, float]]:
    """Width and height of a level's default boxes in pixels, before torchvision clips them."""
    side, larger = _SSD_SIDES[level], math.sqrt(_SSD_SIDES[level] * _SSD_SIDES[level + 1])
    sides = [(side, side), (larger, larger)]
    for ratio in _SSD_RATIOS[level]:
        long, short = side * math.sqrt(ratio), side / math.sqrt(ratio)
        sides += [(long, short), (short, long)]
    return sides


def _for_unclipped_boxes(level: int) -> Callable[[Tensor], Tensor]:
    """The regression of a box that torchvision clips to 300 pixels, for one that is not clipped.

    x = dx * std * w + centre and w' = w * exp(dw * std): with w larger by 1 / r, dx shrinks by r, dw falls by
    ln(1 / r) / std.
    """

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


def _ssd_head_rules(level: int, outputs: int) -> List[Rule]:
    order, cells = [*foreground_rows(outputs), 0], len(_ssd_sides(level))
    clipped = any(max(sides) > 300 for sides in _ssd_sides(level))
    theirs = r'head\.{}_head\.module_list\.' + f'{level}' + r'\.(.*)'
    return [
        Rule(
            theirs.format('classification'),
            rf'bbox_head.cls_convs.{level}.0.\1',
            f'{what_was_selected(outputs)}, background moved to the end',
            lambda t: select_rows(t, order, cells),
        ),
        Rule(
            theirs.format('regression'),
            rf'bbox_head.reg_convs.{level}.0.\1',
            'rescaled for default boxes that are not clipped to the picture' if clipped else '',
            _for_unclipped_boxes(level) if clipped else None,
        ),
    ]


def _convert_ssd(source: Mapping[str, Tensor]) -> Imported:
    first = 'head.{}_head.module_list.0.weight'
    cells = source[first.format('regression')].shape[0] // 4
    outputs = source[first.format('classification')].shape[0] // max(cells, 1)
    rules: List[Rule] = [
        Rule(r'backbone\.scale_weight', 'neck.l2_norm.weight'),
        Rule(r'backbone\.(features\.\d+\..*)', r'backbone.\1'),
        Rule(r'backbone\.extra\.0\.([135])\.(.*)', lambda m: f'backbone.features.{23 + int(m[1])}.{m[2]}'),
        Rule(r'backbone\.extra\.0\.7\.1\.(.*)', r'backbone.features.31.\1'),
        Rule(r'backbone\.extra\.0\.7\.3\.(.*)', r'backbone.features.33.\1'),
        Rule(
            r'backbone\.extra\.([1-4])\.([02])\.(.*)',
            lambda m: f'neck.extra_layers.{int(m[1]) - 1}.{int(m[2]) // 2}.conv.{m[3]}',
        ),
    ]
    for level in range(len(_SSD_STEPS)):
        rules += _ssd_head_rules(level, outputs)
    return apply_rules(
        SSD.name,
        rules,
        source,
        classes=classes_of(outputs),
        checks=(
            preprocessing([123.0, 117.0, 104.0], [1.0] * 3, True),
            anchors('bbox_head', _ssd_anchors(), 0.1),
            setting(
                'bbox_head.bbox_coder.stds', _BOX_STDS, f'model.bbox_head.bbox_coder.target_stds={list(_BOX_STDS)}'
            ),
        ),
    )


def _ssd_anchors() -> List[Tensor]:
    levels = []
    for level, step in enumerate(_SSD_STEPS):
        sides = torch.tensor(_ssd_sides(level))
        levels.append(torch.cat([step / 2 - sides / 2, step / 2 + sides / 2], dim=1))
    return levels


# ---- ResNet with FPN
_BODY = Rule(r'backbone\.body\.((?:conv1|bn1|layer[1-4])\..*)', r'backbone.\1')
_FPN = (
    _BODY,
    Rule(r'backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(weight|bias)', r'neck.lateral_convs.\1.conv.\2'),
    Rule(r'backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(weight|bias)', r'neck.fpn_convs.\1.conv.\2'),
)


def _rounding(outputs: int) -> Check:
    # The published COCO weights run with eps 0; who trained from them kept that, who began from ImageNet did not.
    return norm_eps([0.0] if outputs == OUTPUTS else [0.0, 1e-5])


def _is_rcnn(names: Mapping[str, Tensor]) -> bool:
    return {'backbone.body.conv1.weight', 'roi_heads.box_predictor.cls_score.weight'} <= names.keys()


def _rcnn_rules(outputs: int) -> Sequence[Rule]:
    classes = foreground_rows(outputs)
    what = what_was_selected(outputs)
    return (
        *_FPN,
        Rule(r'rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)', r'rpn_head.rpn_conv.\1'),
        Rule(r'rpn\.head\.cls_logits\.(.*)', r'rpn_head.rpn_cls.\1'),
        Rule(r'rpn\.head\.bbox_pred\.(.*)', r'rpn_head.rpn_reg.\1'),
        Rule(r'roi_heads\.box_head\.fc([67])\.(.*)', lambda m: f'roi_head.bbox_head.shared_fcs.{int(m[1]) - 6}.{m[2]}'),
        Rule(
            r'roi_heads\.box_predictor\.cls_score\.(.*)',
            r'roi_head.bbox_head.fc_cls.\1',
            f'{what}, background moved to the end',
            lambda t: select_rows(t, [*classes, 0], 1),
        ),
        Rule(
            r'roi_heads\.box_predictor\.bbox_pred\.(.*)',
            r'roi_head.bbox_head.fc_reg.\1',
            f'{what}, no boxes of the background',
            lambda t: select_rows(t, classes, 1, 4),
        ),
        Rule(
            r'roi_heads\.mask_head\.mask_fcn([1-4])\.(.*)',
            lambda m: f'roi_head.mask_head.convs.{int(m[1]) - 1}.conv.{m[2]}',
        ),
        Rule(r'roi_heads\.mask_head\.([0-3])\.0\.(weight|bias)', r'roi_head.mask_head.convs.\1.conv.\2'),
        Rule(r'roi_heads\.mask_predictor\.conv5_mask\.(.*)', r'roi_head.mask_head.upsample.\1'),
        Rule(
            r'roi_heads\.mask_predictor\.mask_fcn_logits\.(.*)',
            r'roi_head.mask_head.conv_logits.\1',
            f'{what}, no mask of the background',
            lambda t: select_rows(t, classes, 1),
        ),
    )


def _convert_rcnn(source: Mapping[str, Tensor]) -> Imported:
    outputs = source['roi_heads.box_predictor.cls_score.weight'].shape[0]
    sizes = [(32,), (64,), (128,), (256,), (512,)]
    return apply_rules(
        RCNN.name,
        _rcnn_rules(outputs),
        source,
        classes=classes_of(outputs),
        checks=(
            IMAGENET_RGB,
            STYLE_PYTORCH,
            _rounding(outputs),
            roi_align(False, 2, ('roi_head.bbox_roi_extractor', 'roi_head.mask_roi_extractor')),
            # torchvision rounds the corners of its anchors, half a pixel at most.
            anchors('rpn_head', cell_anchors(sizes, _RATIOS), 1.0),
            setting('rpn_head.bbox_coder.stds', (1.0,) * 4, 'model.rpn_head.bbox_coder.target_stds=[1.0] * 4'),
            setting(
                'roi_head.bbox_head.bbox_coder.stds',
                _BOX_STDS,
                f'model.roi_head.bbox_head.bbox_coder.target_stds={list(_BOX_STDS)}',
            ),
        ),
    )


def _is_retinanet(names: Mapping[str, Tensor]) -> bool:
    return {'backbone.body.conv1.weight', 'head.classification_head.cls_logits.weight'} <= names.keys()


def _retinanet_rules(outputs: int) -> Sequence[Rule]:
    classes = foreground_rows(outputs)
    towers = tuple(
        rule
        for theirs, ours in (('classification', 'cls'), ('regression', 'reg'))
        for rule in (
            Rule(
                rf'head\.{theirs}_head\.conv\.([0246])\.(weight|bias)',
                lambda m, ours=ours: f'bbox_head.{ours}_convs.{int(m[1]) // 2}.conv.{m[2]}',
            ),  # type: ignore[misc]
            Rule(rf'head\.{theirs}_head\.conv\.([0-3])\.0\.(weight|bias)', rf'bbox_head.{ours}_convs.\1.conv.\2'),
        )
    )
    return (
        *_FPN,
        Rule(r'backbone\.fpn\.extra_blocks\.p([67])\.(.*)', lambda m: f'neck.fpn_convs.{int(m[1]) - 3}.conv.{m[2]}'),
        *towers,
        Rule(
            r'head\.classification_head\.cls_logits\.(.*)',
            r'bbox_head.retina_cls.\1',
            what_was_selected(outputs),
            lambda t: select_rows(t, classes, 9),
        ),
        Rule(r'head\.regression_head\.bbox_reg\.(.*)', r'bbox_head.retina_reg.\1'),
    )


def _convert_retinanet(source: Mapping[str, Tensor]) -> Imported:
    rows = source['head.classification_head.cls_logits.weight'].shape[0]
    if rows % 9:
        raise CheckpointError(
            f'it looks like {RETINANET.name}, and its {rows} class outputs are no multiple of 9 anchors'
        )
    sizes = [[int(base * 2 ** (octave / 3)) for octave in range(3)] for base in (32, 64, 128, 256, 512)]
    p6 = source.get('backbone.fpn.extra_blocks.p6.weight', torch.empty(256, 256))
    return apply_rules(
        RETINANET.name,
        _retinanet_rules(rows // 9),
        source,
        classes=classes_of(rows // 9),
        checks=(
            IMAGENET_RGB,
            STYLE_PYTORCH,
            _rounding(rows // 9),
            anchors('bbox_head', cell_anchors(sizes, _RATIOS), 2.0),
            *extra_levels('on_output' if p6.shape[0] == p6.shape[1] else 'on_input'),
            setting('bbox_head.bbox_coder.stds', (1.0,) * 4, 'model.bbox_head.bbox_coder.target_stds=[1.0] * 4'),
        ),
    )


def extra_levels(source: str) -> Tuple[Check, ...]:
    """FPN's sixth and seventh level as both torchvision and Detectron2 compute them."""
    return (
        setting('neck.add_extra_convs', source, f"model.neck.add_extra_convs='{source}'"),
        setting('neck.relu_before_extra_convs', True, 'model.neck.relu_before_extra_convs=True'),
    )


SSD = Format('torchvision SSD300 on VGG-16', _is_ssd, _convert_ssd)
RCNN = Format('torchvision Faster or Mask R-CNN with FPN', _is_rcnn, _convert_rcnn)
RETINANET = Format('torchvision RetinaNet with FPN', _is_retinanet, _convert_retinanet)
