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
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .base import Format, Imported
from .checks import IMAGENET_RGB, anchors, box_stds, norm_eps, setting, stride_in
from .table import Rule, apply_rules, select_rows

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


def spelling(name: str) -> str:
    """A name without what depends on how, when and on how many devices the network was made and saved.

    A dot stands before the parameter, whose name is PyTorch's; heads have their structural names.
    """
    for pattern, replacement in _SPELLINGS:
        name = re.sub(pattern, replacement, name)
    return name


def _module_rule(modules: Mapping[str, str]) -> Rule:
    return Rule(rf'({"|".join(map(re.escape, modules))})\.(\w+)', lambda m: f'{modules[m[1]]}.{m[2]}')


def _parameters(modules: Mapping[str, str]) -> Iterator[str]:
    """The network's names for convolutions without a bias and norms."""
    for module in dict.fromkeys(modules.values()):
        norm = re.search(r'\.(?:bn\d?|downsample\.1)$', module)
        for parameter in ('weight', *(('bias', 'running_mean', 'running_var') if norm else ())):
            yield f'{module}.{parameter}'


def _needed(format_name: str, spelled: Mapping[str, Tensor], pattern: str, levels: int) -> list[Tensor]:
    """One tensor of each level, which tells how the others are to be read."""
    names = [pattern.format(level) for level in range(levels)]
    if missing := [name for name in names if name not in spelled]:
        raise CheckpointError(f'it looks like {format_name}, and lacks {", ".join(missing)}')
    return [spelled[name] for name in names]


# ---- SSD512
def _is_ssd(names: Mapping[str, Tensor]) -> bool:
    spelled = set(map(spelling, names))
    return {'class_predictors.0.predictor.weight', 'box_predictors.0.predictor.weight'} <= spelled and bool(
        {'anchor_generators.0.anchors', 'expand_trans_conv0.weight'} & spelled
    )


def _ssd_modules() -> dict[str, str]:
    parts = (('conv1', 'bn1'), ('conv2', 'bn2'), ('conv3', 'bn3'), ('downsample.0', 'downsample.1'))
    modules = {'resnetv1_conv0': 'backbone.conv1', 'resnetv1_batchnorm0': 'backbone.bn1'}
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for number in range(3 * blocks + 1):  # convolutions are counted through a stage; the first block has four
            block, part = (0, number) if number < 4 else divmod(number - 1, 3)
            for kind, name in zip(('conv', 'batchnorm'), parts[part], strict=True):
                modules[f'resnetv1_stage{stage}_{kind}{number}'] = f'backbone.layer{stage}.{block}.{name}'
    for level in range(4):
        for part, name in enumerate(('expand_trans', 'expand')):
            for kind in ('conv', 'bn'):
                modules[f'{name}_{kind}{level}'] = f'neck.extra_layers.{level}.{part}.{kind}'
    return modules


_SSD_MODULES = _ssd_modules()
_SSD = (
    Rule(
        rf'({"|".join(name for name in _SSD_MODULES if "_conv" in name and "stage" in name)})\.bias',
        lambda m: f'{_SSD_MODULES[m[1].replace("_conv", "_batchnorm")]}.running_mean',
        'subtracted from the mean of the norm behind it',
        fold=True,
    ),
    Rule(
        r'(expand_(?:trans_)?bn[0-3])\.weight',
        lambda m: f'{_SSD_MODULES[m[1]]}.weight',
        'set to 1 (the norm has fix_gamma)',
        torch.ones_like,
    ),
    _module_rule(_SSD_MODULES),
    Rule(r'box_predictors\.([0-5])\.predictor\.(\w+)', 'bbox_head.reg_convs.{1}.0.{2}'),
    Rule(r'anchor_generators\.[0-5]\.anchors', None, _ANCHORS),
)


def _convert_ssd(source: Mapping[str, Tensor]) -> Imported:
    spelled = {spelling(name): tensor for name, tensor in source.items()}
    if all(re.match(r'(?:class|box)_predictors\.|anchor_generators\.', name) for name in spelled):
        raise CheckpointError(
            f'it looks like {SSD.name}, but has no backbone at all: MXNet 1.2.0 lost the features of such networks when '
            "it saved them; take the model zoo's file, or save the network with another version of MXNet"
        )
    cells = [_first_cell(grid) for grid in _needed(SSD.name, spelled, 'anchor_generators.{}.anchors', 6)]
    scores = _needed(SSD.name, spelled, 'class_predictors.{}.predictor.weight', 6)
    outputs = scores[0].shape[0] // len(cells[0])
    classes = [
        Rule(
            rf'class_predictors\.{level}\.predictor\.(\w+)',
            f'bbox_head.cls_convs.{level}.0.{{1}}',
            'the background moved from the first place to the last',
            select_rows([*range(1, outputs), 0], len(cell)),
        )
        for level, cell in enumerate(cells)
    ]
    checks = (
        setting('bbox_head.num_classes', outputs - 1),
        norm_eps([1e-5]),
        norm_eps([1e-3], 'neck'),
        stride_in('conv1', 'caffe'),
        anchors('bbox_head', cells, 0.01),
        setting('bbox_head.bbox_coder.means', (0.0,) * 4, 'bbox_head.bbox_coder.target_means'),
        box_stds('bbox_head'),
        IMAGENET_RGB,
    )
    expected = _parameters(_SSD_MODULES)
    return apply_rules(SSD.name, (*_SSD, *classes), source, spelling=spelling, expected=expected, checks=checks)


def _first_cell(grid: Tensor) -> Tensor:
    """Corners of the first cell's anchors, (A, 4), of a grid (1, 1, H, W, A * 4) of (cx, cy, w, h), in pixels."""
    if grid.dim() != 5 or not grid.numel() or grid.shape[-1] % 4:
        raise CheckpointError(f'it has anchors of the shape {tuple(grid.shape)}, expected (1, 1, H, W, A * 4)')
    centre, sides = grid[0, 0, 0, 0].float().reshape(-1, 4).split(2, 1)
    return torch.cat([centre - sides / 2, centre + sides / 2], 1)


# ---- YOLOv3
def _is_yolo(names: Mapping[str, Tensor]) -> bool:
    return 'yolo_outputs.0.prediction.weight' in map(spelling, names)


def _yolo_modules() -> dict[str, str]:
    """Both ways of naming a convolution and its norm: by place, and counted in the order of execution."""
    darknet = ['conv1']
    for stage, blocks in enumerate((1, 2, 8, 8, 4), 1):
        darknet += [f'conv_res_block{stage}.{block}' for block in ('conv', *(f'res{n}' for n in range(blocks)))]
    places = [f'stages.{third}.{n}' for third, length in enumerate((15, 9, 5)) for n in range(length)]
    cells = []  # the network's name and the place, in the order of execution
    for ours, place in zip(darknet, places, strict=True):
        parts = [('.conv1', '.body.0'), ('.conv2', '.body.1')] if '.res' in ours else [('', '')]
        cells += [(f'backbone.{ours}{our}', f'{place}{part}') for our, part in parts]
    counted = [(*cell, 'darknetv3_', number) for number, cell in enumerate(cells)]
    for level in range(3):  # the first is the deepest
        flat = f'yolodetectionblockv3{level}_'
        counted += [
            (f'neck.detect{level + 1}.conv{part + 1}', f'yolo_blocks.{level}.body.{part}', flat, part)
            for part in range(5)
        ]
        counted.append((f'bbox_head.convs_bridge.{level}', f'yolo_blocks.{level}.tip', flat, 5))
    counted += [(f'neck.conv{level + 1}', f'transitions.{level}', '', level) for level in range(2)]
    return {
        name: f'{ours}.{kind}'
        for ours, place, flat, number in counted
        for kind, names in (
            ('conv', (f'{place}.0', f'{flat}conv{number}')),
            ('bn', (f'{place}.1', f'{flat}batchnorm{number}')),
        )
        for name in names
    }


_YOLO_MODULES = _yolo_modules()
_YOLO = (
    _module_rule(_YOLO_MODULES),
    Rule(r'yolo_outputs\.[0-2]\.anchors', None, _ANCHORS),
    Rule(r'yolo_outputs\.[0-2]\.offsets', None, 'the numbers of the cells, which the head counts itself'),
)


def _convert_yolo(source: Mapping[str, Tensor]) -> Imported:
    spelled = {spelling(name): tensor for name, tensor in source.items()}
    rows = [t.shape[0] for t in _needed(YOLO.name, spelled, 'yolo_outputs.{}.prediction.weight', 3)]
    sides = _needed(YOLO.name, spelled, 'yolo_outputs.{}.anchors', 3)
    if wrong := [tuple(level.shape) for level in sides if level.dim() != 4 or level.shape[-1] != 2]:
        raise CheckpointError(f'it has anchors of the shape {wrong[0]}, expected (1, 1, A, 2)')
    counts = {row / level.shape[-2] - 5 for row, level in zip(rows, sides, strict=True)}
    if len(counts) > 1 or any(count < 1 or count % 1 for count in counts):
        raise CheckpointError(f'its levels have {rows} outputs, expected the same A * (5 + classes) on each')
    classes = int(counts.pop())
    boxes = [
        torch.cat([stride / 2 - wh / 2, stride / 2 + wh / 2], 1)
        for wh, stride in zip((level.float().reshape(-1, 2) for level in sides), (32, 16, 8), strict=True)
    ]
    checks = (
        setting('bbox_head.num_classes', classes),
        *(norm_eps([1e-5], part) for part in ('backbone', 'neck', 'bbox_head')),
        _check_slopes,
        anchors('bbox_head', boxes, 0.01),
        IMAGENET_RGB,
    )
    rules = (*_YOLO, Rule(r'yolo_outputs\.([0-2])\.prediction\.(\w+)', 'bbox_head.convs_pred.{1}.{2}'))
    expected = _parameters(_YOLO_MODULES)
    return apply_rules(YOLO.name, rules, source, spelling=spelling, expected=expected, checks=checks)


def _check_slopes(model: nn.Module) -> list[str]:
    wrong = sorted({module.negative_slope for module in model.modules() if isinstance(module, nn.LeakyReLU)} - {0.1})
    return [f'the network has LeakyReLUs of slope {wrong}, the file was trained with 0.1'] if wrong else []


SSD = Format('GluonCV SSD512 on ResNet-50 v1', _is_ssd, _convert_ssd)
YOLO = Format('GluonCV YOLOv3 on Darknet-53', _is_yolo, _convert_yolo)
