# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Settings of a network that would change a foreign baseline's numbers without any name or shape telling.

They are data: paths in a config, below ``model``, to the values that the weights need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Needed = dict[str, Any]  # a set holds the numbers of which any will do
# What a network calls a setting of a config that it has under another name.
_ATTRIBUTES = (
    ('roi_layer.', 'roi_layers.0.'),
    ('.target_', '.'),
    ('.anchor_generator', '.prior_generator.base_anchors'),
)
_OF_MODULES = ('norm_cfg.eps', 'act_cfg.negative_slope')  # settings of all norms and activations in a part


class Anchors(NamedTuple):
    """The anchors of a cell, a level each, (A, 4) corners in pixels, in the order of the outputs."""

    levels: Sequence[Tensor]
    tolerance: float


def problems_of(model: nn.Module, needed: Needed) -> list[str]:
    """A line for everything that differs. A part that the network lacks is none: its names are missing then."""
    lines: list[str] = []
    for path, wanted in needed.items():
        found = _found(model, path)
        if found is None:
            continue
        if isinstance(wanted, Anchors):
            lines += _other_anchors(path, found, wanted)
        elif not _same(found, wanted):
            value = _shown(wanted)
            lines.append(f'{path} is {_shown(found)}, the weights need {value}: set model.{path}={value}')
    return lines


def flips_channels(processor: Any) -> bool:
    """Whether a data preprocessor turns BGR into RGB; mmsegmentation 1.2.2 says so without an underscore."""
    return any(bool(getattr(processor, name, False)) for name in ('_channel_conversion', 'channel_conversion'))


def preprocessing(mean: Sequence[float], std: Sequence[float], rgb: bool) -> Needed:
    """Pictures are normalised with these numbers, given in the order of the channels that the network sees."""
    return {f'data_preprocessor.{name}': value for name, value in dict(mean=mean, std=std, bgr_to_rgb=rgb).items()}


IMAGENET_RGB = preprocessing([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], True)


def box_stds(head: str, stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)) -> Needed:
    """A head's box coder divides by these standard deviations."""
    return {f'{head}.bbox_coder.target_stds': stds}


def extra_levels(weight: Tensor | None) -> Needed:
    """FPN's sixth and seventh level as both torchvision and Detectron2 compute them, by the weight of the sixth."""
    if weight is None:
        return {}
    source = 'on_output' if weight.shape[0] == weight.shape[1] else 'on_input'
    return {'neck.add_extra_convs': source, 'neck.relu_before_extra_convs': True}


def roi_align(aligned: bool, sampling_ratio: int) -> Needed:
    """RoIAlign has these settings, for boxes and for masks."""
    layers = [f'roi_head.{kind}_roi_extractor.roi_layer' for kind in ('bbox', 'mask')]
    return {f'{at}.aligned': aligned for at in layers} | {f'{at}.sampling_ratio': sampling_ratio for at in layers}


def boxes_of(sides: Tensor, centre: float | Tensor = 0.0) -> Tensor:
    """Corners, (A, 4), of boxes of some width and height, (A, 2), around points, (A, 2), or one of the diagonal."""
    return torch.cat([centre - sides / 2, centre + sides / 2], 1)


def cell_anchors(sizes: Sequence[Sequence[float]], tolerance: float) -> Anchors:
    """Anchors around the origin, (3 * sizes, 4) a level: for height / width of 0.5, 1 and 2 all sizes."""
    sides = [[(size / ratio**0.5, size * ratio**0.5) for ratio in (0.5, 1.0, 2.0) for size in level] for level in sizes]
    return Anchors([boxes_of(torch.tensor(level)) for level in sides], tolerance)


def rpn_anchors(tolerance: float) -> Needed:
    """An RPN with FPN has one size a level, as in the papers."""
    return {'rpn_head.anchor_generator': cell_anchors([[32], [64], [128], [256], [512]], tolerance)}


def _found(model: nn.Module, path: str) -> Any:
    """A network's value of a setting, or None."""
    part, _, setting = path.partition('.')
    if setting in _OF_MODULES:
        kinds, name = (nn.modules.batchnorm._BatchNorm, nn.LeakyReLU), setting.rpartition('.')[2]
        modules = getattr(model, part, nn.Identity()).modules()
        return {getattr(m, name) for m in modules if isinstance(m, kinds) and hasattr(m, name)} or None
    found: Any = model
    for config, attribute in _ATTRIBUTES:
        path = path.replace(config, attribute)
    for name in path.split('.'):
        if name == 'bgr_to_rgb':  # of a preprocessor that normalises
            return flips_channels(found) if isinstance(getattr(found, 'mean', None), Tensor) else None
        found = type(found).__name__ if name == 'type' and found else getattr(found, name, None)
    return found.flatten().tolist() if isinstance(found, Tensor) else found


def _other_anchors(path: str, found: Sequence[Tensor], wanted: Anchors) -> list[str]:
    if len(found) != len(wanted.levels):
        return [f'{path} has {len(found)} levels, the weights need {len(wanted.levels)}: set model.{path}']
    for level, (have, want) in enumerate(zip(found, wanted.levels, strict=True)):
        if have.shape != want.shape or float((have.cpu() - want).abs().max()) > wanted.tolerance:
            shown = [boxes.double().round(decimals=2).tolist() for boxes in (have, want)]
            return [f'{path}: anchors of level {level} are {shown[0]}, the weights need {shown[1]}: set model.{path}']
    return []


def _shown(value: Any) -> str:
    if isinstance(value, set):
        return ' or '.join(f'{number:g}' for number in sorted(value))
    if isinstance(value, list) and all(isinstance(entry, float) for entry in value):
        return str([round(entry, 3) for entry in value])
    return repr(value)


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(found, set):
        return all(any(_same(number, other) for other in wanted) for number in found)
    if isinstance(wanted, (tuple, list)):
        return isinstance(found, (tuple, list)) and len(found) == len(wanted) and all(map(_same, found, wanted))
    if type(wanted) is float and isinstance(found, (int, float)):
        return math.isclose(found, wanted, rel_tol=1e-3)
    return bool(found == wanted)
