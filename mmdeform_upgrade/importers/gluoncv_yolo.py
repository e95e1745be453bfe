# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""GluonCV's ``yolo3_darknet53_{voc,coco}`` onto mmdet's Darknet, YOLOV3Neck and YOLOV3Head.

The architectures agree layer by layer, so only names change (``gluoncv/model_zoo/yolo/darknet.py`` and ``yolo3.py`` of
GluonCV 0.10).
"""

from __future__ import annotations

from typing import Iterator, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from .base import Check, Format, Imported
from .gluoncv import Cell, Conversion, check_classes, check_eps, check_normalisation, plain_name

KIND = 'GluonCV YOLOv3 on Darknet-53'
_RESIDUALS = (1, 2, 8, 8, 4)
_SPLITS = (15, 24)  # where GluonCV cuts the list of Darknet's layers in three
_LEVELS = 3
_PARTS = ('backbone', 'neck', 'bbox_head')


def _darknet() -> Iterator[Cell]:
    numbers = iter(range(52))  # flat names count convolutions in the order of execution

    def cell(target: str, source: str) -> Cell:
        number = next(numbers)
        return Cell(
            f'{target}.conv',
            f'{target}.bn',
            (f'{source}.0.', f'darknetv3_conv{number}_'),
            (f'{source}.1.', f'darknetv3_batchnorm{number}_'),
        )

    layer = 0
    yield cell('backbone.conv1', _place(layer))
    for stage, blocks in enumerate(_RESIDUALS, 1):
        layer += 1
        yield cell(f'backbone.conv_res_block{stage}.conv', _place(layer))
        for block in range(blocks):
            layer += 1
            for part in (0, 1):
                yield cell(f'backbone.conv_res_block{stage}.res{block}.conv{part + 1}', f'{_place(layer)}.body.{part}')


def _place(layer: int) -> str:
    stage = sum(layer >= split for split in _SPLITS)
    return f'stages.{stage}.{layer - (0, *_SPLITS)[stage]}'


def _top() -> Iterator[Cell]:
    for level in range(_LEVELS):  # the first is the deepest
        for part in range(6):
            target = f'neck.detect{level + 1}.conv{part + 1}' if part < 5 else f'bbox_head.convs_bridge.{level}'
            place = f'yolo_blocks.{level}.' + (f'body.{part}' if part < 5 else 'tip')
            flat = f'yolodetectionblockv3{level}'
            yield Cell(
                f'{target}.conv',
                f'{target}.bn',
                (f'{place}.0.', f'{flat}_conv{part}_'),
                (f'{place}.1.', f'{flat}_batchnorm{part}_'),
            )
    for level in range(_LEVELS - 1):
        target, place = f'neck.conv{level + 1}', f'transitions.{level}'
        yield Cell(
            f'{target}.conv', f'{target}.bn', (f'{place}.0.', f'conv{level}_'), (f'{place}.1.', f'batchnorm{level}_')
        )


CELLS = (*_darknet(), *_top())


def _output_stems(level: int) -> Tuple[str, str]:
    return f'yolo_outputs.{level}.prediction.', f'yolooutputv3{level}_conv0_'


def _constant_names(level: int, name: str) -> Tuple[str, str]:
    return f'yolo_outputs.{level}.{name}s', f'yolooutputv3{level}_{name}_{level}'


def recognise(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a GluonCV YOLOv3."""
    names = {plain_name(name) for name in tensors}
    return any(stem + 'weight' in names for stem in _output_stems(0))


def convert(tensors: Mapping[str, Tensor]) -> Imported:
    """mmdet's names; no value changes.

    Raises:
        CheckpointError: everything that is missing, left over or of a wrong shape, in one message.
    """
    work = Conversion(tensors)
    for cell in CELLS:
        work.move_cell(cell)
    lost = len(work.missing)
    rows = [_move_output(work, tensors, level) for level in range(_LEVELS)]
    anchors = [
        work.drop(_constant_names(level, 'anchor'), 'made by the anchor generator; compared with it')
        for level in range(_LEVELS)
    ]
    for level, grid in enumerate(anchors):
        work.drop(_constant_names(level, 'offset'), 'the numbers of the cells, which the head counts itself')
        if grid is not None and (grid.ndim != 4 or grid.shape[-1] != 2):
            work.problems.append(
                f'the anchors of level {level} have the shape {tuple(grid.shape)}, expected (1, 1, A, 2)'
            )
    classes = sorted(
        {
            row / grid.shape[-2] - 5
            for row, grid in zip(rows, anchors, strict=True)
            if row and grid is not None and grid.ndim == 4 and grid.shape[-2]
        }
    )
    if len(classes) > 1 or any(count < 1 or count % 1 for count in classes):
        work.problems.append(f'it has {rows} outputs on its levels, expected the same A * (5 + classes) on each')
    if lost > 5 * len(CELLS) // 2 and work.unknown:
        work.problems.append(f'its backbone is another one ({work.unknown[0]} ...): only yolo3_darknet53 is supported')
    checks = [
        check_classes(int(classes[0]) if classes else 0),
        *(check_eps(part, 1e-5) for part in _PARTS),
        _check_slopes,
        _check_anchors([grid for grid in anchors if grid is not None]),
        check_normalisation,
    ]
    return work.finish(KIND, checks)


def _move_output(work: Conversion, tensors: Mapping[str, Tensor], level: int) -> Optional[int]:
    names = [stem + 'weight' for stem in _output_stems(level)]
    shapes = [tensor.shape for name, tensor in tensors.items() if plain_name(name) in names]
    for part in ('weight', 'bias'):
        work.move(f'bbox_head.convs_pred.{level}.{part}', [stem + part for stem in _output_stems(level)])
    return shapes[0][0] if shapes and len(shapes[0]) else None


def _check_slopes(model: nn.Module) -> List[str]:
    wrong = sorted({module.negative_slope for module in model.modules() if isinstance(module, nn.LeakyReLU)} - {0.1})
    return [f'the network has LeakyReLUs of slope {wrong}, the file was trained with 0.1'] if wrong else []


def _check_anchors(grids: List[Tensor]) -> Check:
    """``grids``: the file's anchors a level, (1, 1, A, 2) as (w, h) in pixels."""

    def check(model: nn.Module) -> List[str]:
        generator = getattr(getattr(model, 'bbox_head', None), 'prior_generator', None)
        found = [grid.reshape(-1, 2).tolist() for grid in grids]
        made = [[list(map(float, size)) for size in level] for level in getattr(generator, 'base_sizes', ())]
        if [len(level) for level in found] == [len(level) for level in made] and all(
            torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-3) for a, b in zip(found, made, strict=True)
        ):
            return []
        return [
            f'the file has the anchors (w, h) {found}, the head {made}: set base_sizes of its anchor_generator to '
            'those of the file'
        ]

    return check


GLUONCV_YOLO = Format(KIND, recognise, convert)
