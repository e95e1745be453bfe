# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Caffe2's and Detectron's blob names to Detectron2's names.

``res2_0_branch2a_w`` is the weight of the first convolution in the first block of the second stage, ``_bn_s`` and
``_bn_b`` scale and shift of the norm after it. FPN's blobs carry the stage that they take from.
"""

from __future__ import annotations

import re
from typing import Callable, Mapping, Match, Tuple

from torch import Tensor

_END = {'w': 'weight', 'b': 'bias'}
_NORM = {
    's': 'weight',
    'b': 'bias',
    'rm': 'running_mean',
    'riv': 'running_var',
    'running_mean': 'running_mean',
    'running_var': 'running_var',
    'gamma': 'weight',
    'beta': 'bias',
}
_BRANCH = {'1': 'shortcut', '2a': 'conv1', '2b': 'conv2', '2c': 'conv3'}
_BLOCK = r'res([2-5])_(\d+)_branch(1|2[abc])'

# A whole name, and what it becomes.
_NAMES: Tuple[Tuple[str, Callable[[Match[str]], str]], ...] = (
    (r'conv1_(w|b)', lambda m: f'stem.conv1.{_END[m[1]]}'),
    (rf'res_conv1_bn_({"|".join(_NORM)})', lambda m: f'stem.conv1.norm.{_NORM[m[1]]}'),
    (rf'{_BLOCK}_(w|b)', lambda m: f'res{m[1]}.{m[2]}.{_BRANCH[m[3]]}.{_END[m[4]]}'),
    (rf'{_BLOCK}_bn_({"|".join(_NORM)})', lambda m: f'res{m[1]}.{m[2]}.{_BRANCH[m[3]]}.norm.{_NORM[m[4]]}'),
    (r'(fc1000|pred)_(w|b)', lambda m: f'{m[1]}.{_END[m[2]]}'),
    # The topmost lateral has no "_lateral" in its name.
    (r'fpn_inner_res(\d)_\d+_sum(?:_lateral)?_(w|b)', lambda m: f'backbone.fpn_lateral{m[1]}.{_END[m[2]]}'),
    (r'fpn_res(\d)_\d+_sum_(w|b)', lambda m: f'backbone.fpn_output{m[1]}.{_END[m[2]]}'),
    (r'conv_rpn_fpn2_(w|b)', lambda m: f'proposal_generator.rpn_head.conv.{_END[m[1]]}'),
    (r'rpn_cls_logits_fpn2_(w|b)', lambda m: f'proposal_generator.rpn_head.objectness_logits.{_END[m[1]]}'),
    (r'rpn_bbox_pred_fpn2_(w|b)', lambda m: f'proposal_generator.rpn_head.anchor_deltas.{_END[m[1]]}'),
    (r'fc([67])_(w|b)', lambda m: f'roi_heads.box_head.fc{int(m[1]) - 5}.{_END[m[2]]}'),
    (r'(cls_score|bbox_pred)_(w|b)', lambda m: f'roi_heads.box_predictor.{m[1]}.{_END[m[2]]}'),
    (r'_\[mask\]_fcn(\d)_(w|b)', lambda m: f'roi_heads.mask_head.mask_fcn{m[1]}.{_END[m[2]]}'),
    (r'conv5_mask_(w|b)', lambda m: f'roi_heads.mask_head.deconv.{_END[m[1]]}'),
    (r'mask_fcn_logits_(w|b)', lambda m: f'roi_heads.mask_head.predictor.{_END[m[1]]}'),
)


def is_caffe2(names: Mapping[str, Tensor]) -> bool:
    """Whether names are Caffe2's of a ResNet."""
    return 'conv1_w' in names and 'res2_0_branch2a_w' in names


def detectron2_name(name: str) -> str:
    """Detectron2's name of a blob; a name that is not known stays as it is."""
    for pattern, target in _NAMES:
        if match := re.fullmatch(pattern, name):
            return target(match)
    return name
