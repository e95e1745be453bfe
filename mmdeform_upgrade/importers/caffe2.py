# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Caffe2's and Detectron's blob names to Detectron2's names.

``res2_0_branch2a_w`` is the weight of the first convolution in the first block of the second stage, ``_bn_s`` and
``_bn_b`` scale and shift of the norm after it. FPN's blobs carry the stage that they take from.
"""

from __future__ import annotations

import re

# The last part of a name, the module before it; an FPN's topmost lateral has no "_lateral" in its name.
_PARAMETERS = {
    '_bn_s': '.norm.weight',
    '_bn_gamma': '.norm.weight',
    '_bn_b': '.norm.bias',
    '_bn_beta': '.norm.bias',
    '_bn_rm': '.norm.running_mean',
    '_bn_running_mean': '.norm.running_mean',
    '_bn_riv': '.norm.running_var',
    '_bn_running_var': '.norm.running_var',
    '_w': '.weight',
    '_b': '.bias',
}
_MODULES = (
    (r'(?:res_)?conv1', 'stem.conv1'),
    (r'res([2-5])_(\d+)_branch1', r'res\1.\2.shortcut'),
    (r'res([2-5])_(\d+)_branch2a', r'res\1.\2.conv1'),
    (r'res([2-5])_(\d+)_branch2b', r'res\1.\2.conv2'),
    (r'res([2-5])_(\d+)_branch2c', r'res\1.\2.conv3'),
    (r'(fc1000|pred)', r'\1'),
    (r'fpn_inner_res(\d)_\d+_sum(?:_lateral)?', r'backbone.fpn_lateral\1'),
    (r'fpn_res(\d)_\d+_sum', r'backbone.fpn_output\1'),
    (r'conv_rpn_fpn2', 'proposal_generator.rpn_head.conv'),
    (r'rpn_cls_logits_fpn2', 'proposal_generator.rpn_head.objectness_logits'),
    (r'rpn_bbox_pred_fpn2', 'proposal_generator.rpn_head.anchor_deltas'),
    (r'fc6', 'roi_heads.box_head.fc1'),
    (r'fc7', 'roi_heads.box_head.fc2'),
    (r'(cls_score|bbox_pred)', r'roi_heads.box_predictor.\1'),
    (r'_\[mask\]_fcn(\d)', r'roi_heads.mask_head.mask_fcn\1'),
    (r'conv5_mask', 'roi_heads.mask_head.deconv'),
    (r'mask_fcn_logits', 'roi_heads.mask_head.predictor'),
)


def detectron2_name(name: str) -> str:
    """Detectron2's name of a blob; a name that is not known stays as it is."""
    ending = next((ending for ending in _PARAMETERS if name.endswith(ending)), None)
    if ending is None:
        return name
    for pattern, module in _MODULES:
        if match := re.fullmatch(pattern, name.removesuffix(ending)):
            return match.expand(module) + _PARAMETERS[ending]
    return name
