# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""GluonCV's ``ssd_512_resnet50_v1_{voc,coco}`` onto mmdet's ResNet, ``WideSSDNeck`` and ``PredictableSSDHead``.

From ``gluoncv/model_zoo/ssd/presets.py``, ``gluoncv/nn/feature.py``, ``gluoncv/nn/predictor.py`` and
``gluoncv/model_zoo/resnet.py`` of GluonCV 0.10.
"""

from __future__ import annotations

from typing import Any, Iterator, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from .base import Check, Format, Imported
from .gluoncv import Cell, Conversion, check_classes, check_eps, check_normalisation, plain_name

KIND = 'GluonCV SSD512 on ResNet-50 v1'
_BLOCKS = (3, 4, 6, 3)
_LEVELS, _EXTRAS = 6, 4
_CODER = ((0.0, 0.0, 0.0, 0.0), (0.1, 0.1, 0.2, 0.2))
_ANCHOR_TOLERANCE = 0.01  # pixels; float32 makes 1e-4 of it
_CONVS = ('conv1', 'conv2', 'conv3', 'downsample.0')
_NORMS = ('bn1', 'bn2', 'bn3', 'downsample.1')


def _backbone() -> Iterator[Cell]:
    yield Cell('backbone.conv1', 'backbone.bn1', ('resnetv1_conv0_',), ('resnetv1_batchnorm0_',))
    for stage, blocks in enumerate(_BLOCKS, 1):
        number = 0  # convolutions are counted through a stage
        for block in range(blocks):
            for part in range(3 if block else 4):
                target, source = f'backbone.layer{stage}.{block}', f'resnetv1_stage{stage}'
                yield Cell(
                    f'{target}.{_CONVS[part]}',
                    f'{target}.{_NORMS[part]}',
                    (f'{source}_conv{number}_',),
                    (f'{source}_batchnorm{number}_',),
                    has_bias=part in (0, 2),
                )
                number += 1


def _neck() -> Iterator[Cell]:
    for level in range(_EXTRAS):
        for part, name in enumerate(('expand_trans', 'expand')):
            target = f'neck.extra_layers.{level}.{part}'
            yield Cell(
                f'{target}.conv', f'{target}.bn', (f'{name}_conv{level}_',), (f'{name}_bn{level}_',), fixed_gamma=True
            )


BACKBONE, NECK = tuple(_backbone()), tuple(_neck())


def _class_stems(level: int) -> Tuple[str, str]:
    return f'class_predictors.{level}.predictor.', f'convpredictor{2 * level}_conv0_'


def _box_stems(level: int) -> Tuple[str, str]:
    return f'box_predictors.{level}.predictor.', f'convpredictor{2 * level + 1}_conv0_'


def _anchor_names(level: int) -> Tuple[str, str]:
    return f'anchor_generators.{level}.anchors', f'ssdanchorgenerator{level}_anchor_{level}'


def recognise(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a GluonCV SSD, with or without its backbone."""
    names = {plain_name(name) for name in tensors}
    return all(any(stem + 'weight' in names for stem in stems(0)) for stems in (_class_stems, _box_stems)) and any(
        name in names for name in (*_anchor_names(0), 'expand_trans_conv0_weight')
    )


def convert(tensors: Mapping[str, Tensor]) -> Imported:
    """Names and values as mmdet's SSD has them: biases folded, extra gammas 1, the background last.

    Raises:
        CheckpointError: everything that is missing, left over or of a wrong shape, in one message.
    """
    work = Conversion(tensors)
    for cell in (*BACKBONE, *NECK):
        work.move_cell(cell)
    lost = len(work.missing)
    outputs = [_move_predictors(work, tensors, level) for level in range(_LEVELS)]
    anchors = [
        work.drop(_anchor_names(level), 'made by the anchor generator; compared with it') for level in range(_LEVELS)
    ]
    for level, (grid, output) in enumerate(zip(anchors, outputs, strict=True)):
        if grid is not None and output and (grid.ndim != 5 or grid.shape[-1] != 4 * output[0]):
            work.problems.append(
                f'the anchors of level {level} have the shape {tuple(grid.shape)}, expected '
                f'(1, 1, H, W, {4 * output[0]})'
            )
    classes = sorted({output[1] for output in outputs if output})
    if len(classes) > 1:
        work.problems.append(f'its levels predict different numbers of classes: {classes}')
    if lost and not any(name.startswith('resnetv1_') for name in map(plain_name, tensors)):
        work.problems.append(_no_backbone(work.unknown))
        del work.missing[:lost]
    checks = [
        check_classes(classes[0] if classes else 0),
        check_eps('backbone', 1e-5),
        check_eps('neck', 1e-3),
        _check_strides,
        _check_anchors([grid for grid in anchors if grid is not None]),
        _check_coder,
        check_normalisation,
    ]
    return work.finish(KIND, checks)


def _no_backbone(unknown: List[str]) -> str:
    if unknown:
        return f'its backbone is another one ({unknown[0]} ...): only ssd_512_resnet50_v1 is supported'
    return (
        'it has no backbone at all: MXNet 1.2.0 lost the features of such networks when it saved them; take the '
        "model zoo's file, or save the network with another version of MXNet"
    )


def _move_predictors(work: Conversion, tensors: Mapping[str, Tensor], level: int) -> Optional[Tuple[int, int]]:
    """Returns the level's anchors a cell and its classes without the background, where they can be told."""
    rows = {}
    for key, stems in (('class', _class_stems(level)), ('box', _box_stems(level))):
        shapes = [
            tuple(tensor.shape)
            for name, tensor in tensors.items()
            if plain_name(name) in [stem + 'weight' for stem in stems]
        ]
        rows[key] = shapes[0][0] if shapes and len(shapes[0]) == 4 else 0
    count = rows['box'] // 4
    fits = count > 0 and rows['box'] % 4 == 0 and rows['class'] % count == 0 and rows['class'] >= 2 * count
    if not fits and rows['class'] and rows['box']:
        work.problems.append(
            f'level {level} has {rows["class"]} class and {rows["box"]} box outputs, expected '
            'A * (classes + 1) and A * 4'
        )
    for part in ('weight', 'bias'):
        names = [stem + part for stem in _class_stems(level)]
        work.move(
            f'bbox_head.cls_convs.{level}.0.{part}',
            names,
            'the background moved from the first place to the last',
            lambda tensor: _background_last(tensor, count, rows['class']) if fits else tensor,
        )
        work.move(f'bbox_head.reg_convs.{level}.0.{part}', [stem + part for stem in _box_stems(level)])
    return (count, rows['class'] // count - 1) if fits else None


def _background_last(tensor: Tensor, anchors: int, rows: int) -> Tensor:
    # (A * (C + 1), ...), anchor by anchor; a bias of another length is left to the check of shapes
    if not tensor.ndim or tensor.shape[0] != rows:
        return tensor
    return tensor.reshape(anchors, rows // anchors, *tensor.shape[1:]).roll(-1, 1).reshape(tensor.shape)


def _check_strides(model: nn.Module) -> List[str]:
    wrong = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.stride != (2, 2)
        and name in [f'backbone.layer{stage}.0.conv1' for stage in (2, 3, 4)]
    ]
    return (
        [
            f"{', '.join(wrong)} have no stride: GluonCV's ResNet v1 strides in the first 1x1 convolution; set "
            "style='caffe' in the backbone"
        ]
        if wrong
        else []
    )


def _check_coder(model: nn.Module) -> List[str]:
    coder = getattr(getattr(model, 'bbox_head', None), 'bbox_coder', None)
    found = tuple(tuple(getattr(coder, name, ()) or ()) for name in ('means', 'stds'))
    return (
        []
        if found == _CODER
        else [f'the head codes boxes with target_means, target_stds = {found}, the file was trained with {_CODER}']
    )


def _check_anchors(grids: List[Tensor]) -> Check:
    """``grids``: the file's anchors a level, (1, 1, H, W, A * 4) as (cx, cy, w, h) in pixels."""

    def check(model: nn.Module) -> List[str]:
        generator: Any = getattr(getattr(model, 'bbox_head', None), 'prior_generator', None)
        levels = getattr(generator, 'num_levels', None)
        if levels != len(grids):
            return [f'the file has anchors of {len(grids)} levels, the head of {levels}']
        return [problem for level, grid in enumerate(grids) if (problem := _compare(generator, level, grid))]

    return check


def _compare(generator: Any, level: int, grid: Tensor) -> str:
    height, width = grid.shape[2:4]
    stored = grid.detach().float().reshape(-1, 4)
    corners = generator.single_level_grid_priors((height, width), level, device='cpu')
    made = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    if made.shape == stored.shape and bool((made - stored).abs().max() <= _ANCHOR_TOLERANCE):
        return ''
    first = [
        [tuple(round(x, 2) for x in row) for row in boxes[: len(boxes) // (height * width)].tolist()]
        for boxes in (stored, made)
    ]
    return (
        f'anchors of level {level} (cx, cy, w, h in the first cell): the file has {first[0]}, the head {first[1]}; '
        'set min_sizes, max_sizes, ratios and strides of its anchor_generator to those of the file'
    )


GLUONCV_SSD = Format(KIND, recognise, convert)
