# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""torchvision's classification ResNets and its DeepLabV3.

Names and layers: ``torchvision/models/resnet.py`` and ``torchvision/models/segmentation/deeplabv3.py`` of
https://github.com/pytorch/vision, v0.20.
"""

from __future__ import annotations

from typing import List, Mapping

import torch
from torch import Tensor, nn

from .base import Format, Imported
from .checks import part_of, preprocessing, setting, stride_in
from .table import Rule, apply_rules

IMAGENET_RGB = preprocessing([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], True)
STYLE_PYTORCH = stride_in('conv2', 'pytorch')

_RESNET = (
    Rule(r'((?:conv1|bn1|layer[1-4])\..*)', r'backbone.\1'),
    Rule(r'fc\.(?:weight|bias)', None, "the classifier of ImageNet's classes"),
)
_DEEPLAB_BACKBONE = Rule(r'(backbone\.(?:conv1|bn1|layer[1-4])\..*)', r'\1')


def _is_resnet(names: Mapping[str, Tensor]) -> bool:
    return all(f'{layer}.weight' in names for layer in ('conv1', 'bn1', 'layer1.0.conv1', 'layer4.0.conv1'))


def _convert_resnet(source: Mapping[str, Tensor]) -> Imported:
    # Files without the classifier have been converted before, and may come from a Caffe network.
    checks = (STYLE_PYTORCH, IMAGENET_RGB) if 'fc.weight' in source else ()
    return apply_rules(RESNET.name, _RESNET, source, checks=checks)


def _is_deeplab(names: Mapping[str, Tensor]) -> bool:
    return {'backbone.conv1.weight', 'classifier.0.convs.4.1.weight', 'classifier.0.project.0.weight'} <= names.keys()


def _pool_first(weight: Tensor) -> Tensor:
    """Columns of the projection, (256, 5 * 256, 1, 1): mmseg concatenates the pooled branch first, torchvision last."""
    branches = weight.chunk(5, dim=1)
    return torch.cat([branches[4], *branches[:4]], dim=1)


_DEEPLAB = (
    _DEEPLAB_BACKBONE,
    Rule(r'classifier\.0\.convs\.([0-3])\.0\.(.*)', r'decode_head.aspp_modules.\1.conv.\2'),
    Rule(r'classifier\.0\.convs\.([0-3])\.1\.(.*)', r'decode_head.aspp_modules.\1.bn.\2'),
    Rule(r'classifier\.0\.convs\.4\.1\.(.*)', r'decode_head.image_pool.1.conv.\1'),
    Rule(r'classifier\.0\.convs\.4\.2\.(.*)', r'decode_head.image_pool.1.bn.\1'),
    Rule(
        r'classifier\.0\.project\.0\.weight',
        r'decode_head.project.conv.weight',
        'columns moved: the pooled branch comes first',
        _pool_first,
    ),
    Rule(r'classifier\.0\.project\.1\.(.*)', r'decode_head.project.bn.\1'),
    Rule(r'classifier\.1\.(.*)', r'decode_head.bottleneck.conv.\1'),
    Rule(r'classifier\.2\.(.*)', r'decode_head.bottleneck.bn.\1'),
    Rule(r'classifier\.4\.(.*)', r'decode_head.conv_seg.\1'),
    Rule(r'aux_classifier\.0\.(.*)', r'auxiliary_head.convs.0.conv.\1'),
    Rule(r'aux_classifier\.1\.(.*)', r'auxiliary_head.convs.0.bn.\1'),
    Rule(r'aux_classifier\.4\.(.*)', r'auxiliary_head.conv_seg.\1'),
)


def _check_deeplab_head(model: nn.Module) -> List[str]:
    head = part_of(model, 'decode_head')
    if head is None or not hasattr(head, 'bottleneck') or hasattr(head, 'project'):
        return []
    return [
        f"decode_head is {type(head).__name__}, which lacks torchvision's projection before its 3x3 convolution: "
        "set model.decode_head.type='ProjectedASPPHead'"
    ]


def _check_dilations(model: nn.Module) -> List[str]:
    wanted = {'layer3.0': 1, 'layer3.1': 2, 'layer4.0': 2, 'layer4.1': 4}
    for block, dilation in wanted.items():
        conv = part_of(model, f'backbone.{block}.conv2')
        if conv is not None and (max(conv.dilation) != dilation or max(conv.stride) != 1):
            return [
                f'backbone.{block}.conv2 has stride {max(conv.stride)} and dilation {max(conv.dilation)}, the '
                f'weights need 1 and {dilation}: set model.backbone.strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), '
                'contract_dilation=True'
            ]
    return []


def _convert_deeplab(source: Mapping[str, Tensor]) -> Imported:
    checks = (
        IMAGENET_RGB,
        STYLE_PYTORCH,
        _check_dilations,
        _check_deeplab_head,
        setting('decode_head.dilations', (1, 12, 24, 36), 'model.decode_head.dilations=(1, 12, 24, 36)'),
        setting('decode_head.align_corners', False, 'model.decode_head.align_corners=False'),
        setting('auxiliary_head.in_index', 2, 'model.auxiliary_head.in_index=2'),
    )
    return apply_rules(DEEPLAB.name, _DEEPLAB, source, checks=checks)


RESNET = Format('a torchvision ResNet', _is_resnet, _convert_resnet)
DEEPLAB = Format('torchvision DeepLabV3', _is_deeplab, _convert_deeplab)
