# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""torchvision's classification ResNets and its DeepLabV3.

Names and layers: ``torchvision/models/resnet.py`` and ``torchvision/models/segmentation/deeplabv3.py`` of
https://github.com/pytorch/vision, v0.20.
"""

from __future__ import annotations

from .checks import IMAGENET_RGB
from .rules import Format, KeyMap, Rule, Source, names_with

_RESNET = (
    Rule(r'((?:conv1|bn1|layer[1-4])\..*)', 'backbone.{1}'),
    Rule(r'fc\..*', None, 'the classifier'),  # fc.1.weight where somebody put dropout before it
)


def _resnet(source: Source) -> KeyMap:
    # Files without the classifier have been converted before, and may come from a Caffe network.
    original = any(name.startswith('fc.') for name in source)
    return KeyMap(_RESNET, {'backbone.style': 'pytorch', **IMAGENET_RGB} if original else {})


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
        **IMAGENET_RGB,
    },
)

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
