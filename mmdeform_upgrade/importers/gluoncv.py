# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""GluonCV's ``ssd_512_resnet50_v1`` and ``yolo3_darknet53`` (VOC and COCO), as MXNet saves them.

From ``gluoncv/model_zoo/{ssd,yolo,resnet.py}`` and ``gluoncv/nn/{feature,predictor}.py`` of GluonCV 0.10. The SSD goes
onto mmdet's ResNet, ``WideSSDNeck`` and ``PredictableSSDHead``; YOLOv3 is mmdet's layer by layer.

MXNet 1.x calls the same parameter

1. by its place in the network, ``stages.0.0.0.weight``: ``save_parameters``;
2. by its own name without the network's prefix, ``resnetv10_conv0_weight``: ``save_params``;
3. with it, ``ssd0_resnetv10_conv0_weight``: ``collect_params().save``;
4. with ``arg:`` or ``aux:`` before that: ``export``.

The number after a class counts the networks of the process. An SSD's backbone is one symbol, so it has names of the
second kind everywhere; behind ``features.`` in the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from ..errors import CheckpointError
from .checks import IMAGENET_RGB, Anchors, box_stds, boxes_of
from .rules import FOLD, Format, KeyMap, Rule, Source, names_with, select_rows

# Names without what depends on how, when and on how many devices the network was made and saved: a dot stands before the
# parameter, whose name is PyTorch's, and heads have their structural names.
_SPELLINGS = (
    (r'^(?:arg|aux):', ''),
    (r'^features\.', ''),
    (r'^(?:ssd|yolov3)\d+_', ''),
    (r'^(resnetv1|darknetv3)\d+_', r'\1_'),
    (r'(^|_)syncbatchnorm(?=\d)', r'\1batchnorm'),
    (r'[._](?:gamma|weight)$', '.weight'),
    (r'[._](?:beta|bias)$', '.bias'),
    (r'[._](?:running|moving)_(mean|var)$', r'.running_\1'),
    (r'^convpredictor(\d*[02468])_conv0', lambda m: f'class_predictors.{int(m[1]) // 2}.predictor'),
    (r'^convpredictor(\d*[13579])_conv0', lambda m: f'box_predictors.{int(m[1]) // 2}.predictor'),
    (r'^ssdanchorgenerator(\d)_anchor_\1$', r'anchor_generators.\1.anchors'),
    (r'^yolooutputv3(\d)_conv0', r'yolo_outputs.\1.prediction'),
    (r'^yolooutputv3(\d)_(anchor|offset)_\1$', r'yolo_outputs.\1.\2s'),
)
_ANCHORS = 'made by the anchor generator; compared with it'
_FIXED = ('set to 1 (the norm has fix_gamma)', torch.ones_like)


def _unit(conv: str, norm: str, our_conv: str, our_norm: str) -> tuple[Rule, ...]:
    """A convolution and its norm; the names on the left are regular expressions without groups."""
    return (
        Rule(rf'{conv}\.weight', f'{our_conv}.weight'),
        Rule(rf'{conv}\.bias', f'{our_norm}.running_mean', *FOLD),
        Rule(rf'{norm}\.(\w+)', f'{our_norm}.{{1}}'),
    )


def _resnet50() -> Iterator[Rule]:
    yield from _unit('resnetv1_conv0', 'resnetv1_batchnorm0', 'backbone.conv1', 'backbone.bn1')
    parts = (('conv1', 'bn1'), ('conv2', 'bn2'), ('conv3', 'bn3'), ('downsample.0', 'downsample.1'))
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        theirs, ours = f'resnetv1_stage{stage}', f'backbone.layer{stage}'
        for number in range(3 * blocks + 1):  # convolutions are counted through a stage; the first block has four
            block, part = (0, number) if number < 4 else divmod(number - 1, 3)
            conv, norm = (f'{ours}.{block}.{name}' for name in parts[part])
            yield from _unit(f'{theirs}_conv{number}', f'{theirs}_batchnorm{number}', conv, norm)


_SSD = (
    *_resnet50(),
    Rule(r'expand_trans_bn([0-3])\.weight', 'neck.extra_layers.{1}.0.bn.weight', *_FIXED),
    Rule(r'expand_bn([0-3])\.weight', 'neck.extra_layers.{1}.1.bn.weight', *_FIXED),
    Rule(r'expand_trans_(conv|bn)([0-3])\.(\w+)', 'neck.extra_layers.{2}.0.{1}.{3}'),
    Rule(r'expand_(conv|bn)([0-3])\.(\w+)', 'neck.extra_layers.{2}.1.{1}.{3}'),
    Rule(r'box_predictors\.([0-5])\.predictor\.(\w+)', 'bbox_head.reg_convs.{1}.0.{2}'),
    Rule(r'anchor_generators\.[0-5]\.anchors', None, _ANCHORS),
)


def _ssd(source: Source) -> KeyMap:
    if all(re.match(r'(?:class|box)_predictors\.|anchor_generators\.', name) for name in source):
        raise CheckpointError(
            f'it looks like {SSD.name}, but has no backbone at all: MXNet 1.2.0 lost the features of such networks when '
            "it saved them; take the model zoo's file, or save the network with another version of MXNet"
        )
    # Of each level's first cell: a grid is (1, 1, H, W, A * 4), of (cx, cy, w, h) in pixels.
    grids = (source[f'anchor_generators.{level}.anchors'][0, 0, 0, 0].float().reshape(-1, 4) for level in range(6))
    cells = [boxes_of(grid[:, 2:], grid[:, :2]) for grid in grids]
    outputs = source['class_predictors.0.predictor.weight'].shape[0] // len(cells[0])
    moved = 'the background moved from the first place to the last', select_rows([*range(1, outputs), 0])
    classes = Rule(r'class_predictors\.([0-5])\.predictor\.(\w+)', 'bbox_head.cls_convs.{1}.0.{2}', *moved)
    needed = {
        'bbox_head.num_classes': outputs - 1,
        'backbone.norm_cfg.eps': {1e-5},
        'neck.norm_cfg.eps': {1e-3},
        'backbone.style': 'caffe',
        'bbox_head.anchor_generator': Anchors(cells, 0.01),
        'bbox_head.bbox_coder.target_means': (0.0,) * 4,
        **box_stds('bbox_head'),
        **IMAGENET_RGB,
    }
    return KeyMap((*_SSD, classes), needed)


def _darknet_and_heads() -> Iterator[Rule]:
    """Both ways of naming a convolution and its norm: by place, and counted in the order of execution."""

    def unit(place: str, counted: str, number: int, ours: str) -> tuple[Rule, ...]:
        place = re.escape(place)
        conv, norm = rf'(?:{place}\.0|{counted}conv{number})', rf'(?:{place}\.1|{counted}batchnorm{number})'
        return _unit(conv, norm, f'{ours}.conv', f'{ours}.bn')

    places = iter([f'stages.{third}.{n}' for third, length in enumerate((15, 9, 5)) for n in range(length)])
    cells = [(next(places), 'conv1')]  # the place and the network's name, in the order of execution
    for stage, blocks in enumerate((1, 2, 8, 8, 4), 1):
        cells.append((next(places), f'conv_res_block{stage}.conv'))
        for block in range(blocks):
            place = next(places)
            cells += [(f'{place}.body.{n}', f'conv_res_block{stage}.res{block}.conv{n + 1}') for n in range(2)]
    for number, (place, ours) in enumerate(cells):
        yield from unit(place, 'darknetv3_', number, f'backbone.{ours}')
    for level in range(3):  # the first is the deepest
        counted = f'yolodetectionblockv3{level}_'
        for part in range(5):
            yield from unit(f'yolo_blocks.{level}.body.{part}', counted, part, f'neck.detect{level + 1}.conv{part + 1}')
        yield from unit(f'yolo_blocks.{level}.tip', counted, 5, f'bbox_head.convs_bridge.{level}')
    for level in range(2):
        yield from unit(f'transitions.{level}', '', level, f'neck.conv{level + 1}')


_YOLO = (
    *_darknet_and_heads(),
    Rule(r'yolo_outputs\.([0-2])\.prediction\.(\w+)', 'bbox_head.convs_pred.{1}.{2}'),
    Rule(r'yolo_outputs\.[0-2]\.anchors', None, _ANCHORS),
    Rule(r'yolo_outputs\.[0-2]\.offsets', None, 'the numbers of the cells, which the head counts itself'),
)


def _yolo(source: Source) -> KeyMap:
    sides = [source[f'yolo_outputs.{level}.anchors'].float().reshape(-1, 2) for level in range(3)]
    outputs = source['yolo_outputs.0.prediction.weight'].shape[0]
    parts = ('backbone', 'neck', 'bbox_head')
    boxes = [boxes_of(wh, stride / 2) for wh, stride in zip(sides, (32, 16, 8), strict=True)]
    needed = {
        'bbox_head.num_classes': outputs // len(sides[0]) - 5,
        **{f'{part}.norm_cfg.eps': {1e-5} for part in parts},
        **{f'{part}.act_cfg.negative_slope': {0.1} for part in parts},
        'bbox_head.anchor_generator': Anchors(boxes, 0.01),
        **IMAGENET_RGB,
    }
    return KeyMap(_YOLO, needed)


_PREDICTORS = ('class_predictors.0.predictor.weight', 'box_predictors.0.predictor.weight')
SSD = Format(
    'GluonCV SSD512 on ResNet-50 v1',
    names_with(*((*_PREDICTORS, name) for name in ('anchor_generators.0.anchors', 'expand_trans_conv0.weight'))),
    _ssd,
    _SPELLINGS,
)
YOLO = Format('GluonCV YOLOv3 on Darknet-53', names_with(('yolo_outputs.0.prediction.weight',)), _yolo, _SPELLINGS)
