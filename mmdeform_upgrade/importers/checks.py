# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Settings of a network that would change a foreign baseline's numbers without any name or shape telling.

Each function makes a check: given the network, a line for everything that differs, with the setting to write. A part
that the network lacks is no line here: its names are missing then.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import Check


def part_of(model: nn.Module, path: str) -> Any:
    """The object at a dotted path of attributes, or None."""
    found: Any = model
    for name in path.split('.'):
        found = getattr(found, name, None)
    return found


def norm_eps(accepted: Sequence[float], part: str = 'backbone') -> Check:
    """Batch norms of a part have one of these eps."""

    def check(model: nn.Module) -> list[str]:
        for name, norm in model.named_modules():
            if not name.startswith(f'{part}.') or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
                continue
            if not any(_same(norm.eps, eps) for eps in accepted):
                wanted = ' or '.join(f'{eps:g}' for eps in accepted)
                return [
                    f'{part} has batch norms of eps {norm.eps:g}, the weights were trained with {wanted}: '
                    f'set model.{part}.norm_cfg.eps'
                ]
        return []

    return check


def stride_in(conv: str, style: str) -> Check:
    """Bottlenecks of the backbone have their stride in this convolution."""

    def check(model: nn.Module) -> list[str]:
        for name, module in model.named_modules():
            block, _, found = name.rpartition('.')
            if found == conv or not re.fullmatch(r'backbone\.layer\d\.0\.conv[12]', name):
                continue
            if part_of(model, f'{block}.conv3') is not None and max(module.stride) > 1:
                return [f"{name} has the stride, in this file {conv} has it: set model.backbone.style='{style}'"]
        return []

    return check


def flips_channels(processor: Any) -> bool:
    """Whether a data preprocessor turns BGR into RGB; mmsegmentation 1.2.2 says so without an underscore."""
    return any(bool(getattr(processor, name, False)) for name in ('_channel_conversion', 'channel_conversion'))


def preprocessing(mean: Sequence[float], std: Sequence[float], rgb: bool) -> Check:
    """Pictures are normalised with these numbers, given in the order of the channels that the network sees."""

    def shown(mean: Sequence[float], std: Sequence[float], rgb: bool) -> str:
        return f'mean={[round(x, 3) for x in mean]}, std={[round(x, 3) for x in std]}, bgr_to_rgb={rgb}'

    def check(model: nn.Module) -> list[str]:
        processor = part_of(model, 'data_preprocessor')
        if not isinstance(getattr(processor, 'mean', None), Tensor):
            return []
        found = (processor.mean.flatten().tolist(), processor.std.flatten().tolist(), flips_channels(processor))
        if _same(found, (list(mean), list(std), rgb)):
            return []
        return [
            f'data_preprocessor has {shown(*found)}; the weights need {shown(mean, std, rgb)}: '
            'set model.data_preprocessor'
        ]

    return check


IMAGENET_RGB = preprocessing([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], True)
STYLE_PYTORCH = stride_in('conv2', 'pytorch')


def setting(path: str, wanted: Any, config: str = '') -> Check:
    """An attribute of a part has this value; ``config`` is its path in the config where that is another one."""

    def check(model: nn.Module) -> list[str]:
        owner, _, name = path.rpartition('.')
        part = part_of(model, owner)
        if part is None or not hasattr(part, name) or _same(getattr(part, name), wanted):
            return []
        return [
            f'{path} is {getattr(part, name)!r}, the weights need {wanted!r}: set model.{config or path}={wanted!r}'
        ]

    return check


def box_stds(head: str, stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)) -> Check:
    """A head's box coder divides by these standard deviations."""
    return setting(f'{head}.bbox_coder.stds', stds, f'{head}.bbox_coder.target_stds')


def extra_levels(source: str) -> tuple[Check, ...]:
    """FPN's sixth and seventh level as both torchvision and Detectron2 compute them."""
    return setting('neck.add_extra_convs', source), setting('neck.relu_before_extra_convs', True)


def roi_align(aligned: bool, sampling_ratio: int) -> Check:
    """RoIAlign samples like this, for boxes and for masks."""

    def check(model: nn.Module) -> list[str]:
        problems = []
        for extractor in ('roi_head.bbox_roi_extractor', 'roi_head.mask_roi_extractor'):
            layers = part_of(model, f'{extractor}.roi_layers') or ()
            found = sorted({(layer.aligned, layer.sampling_ratio) for layer in layers} - {(aligned, sampling_ratio)})
            problems += [
                f'{extractor} has aligned={other[0]}, sampling_ratio={other[1]}; the weights need aligned={aligned}, '
                f'sampling_ratio={sampling_ratio}: set model.{extractor}.roi_layer'
                for other in found[:1]
            ]
        return problems

    return check


def anchors(head: str, expected: Sequence[Tensor], tolerance: float) -> Check:
    """The anchors of a cell, a level each, (A, 4) corners in pixels, in the order of the outputs."""

    def check(model: nn.Module) -> list[str]:
        found: Sequence[Tensor] | None = part_of(model, f'{head}.prior_generator.base_anchors')
        if found is None:
            return []
        todo = f'set model.{head}.anchor_generator'
        if len(found) != len(expected):
            return [f'{head} has {len(found)} levels of anchors, the weights {len(expected)}: {todo}']
        for level, (have, want) in enumerate(zip(found, expected, strict=True)):
            if have.shape != want.shape or float((have.cpu() - want).abs().max()) > tolerance:
                return [f'{head}: anchors of level {level} are {_boxes(have)}, the weights need {_boxes(want)}: {todo}']
        return []

    return check


def cell_anchors(sizes: Sequence[Sequence[float]]) -> list[Tensor]:
    """Anchors around the origin, (3 * sizes, 4) a level: for height / width of 0.5, 1 and 2 all sizes."""
    levels = []
    for level in sizes:
        boxes = [(size / ratio**0.5, size * ratio**0.5) for ratio in (0.5, 1.0, 2.0) for size in level]
        levels.append(torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in boxes]))
    return levels


def _boxes(boxes: Tensor) -> str:
    sides = ', '.join(f'{x2 - x1:.4g}x{y2 - y1:.4g}' for x1, y1, x2, y2 in boxes.tolist())
    left, top, right, bottom = boxes[0].tolist()
    return f'{sides} at [{(left + right) / 2:.1f}, {(top + bottom) / 2:.1f}]'


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, (tuple, list)):
        return isinstance(found, (tuple, list)) and len(found) == len(wanted) and all(map(_same, found, wanted))
    if type(wanted) is float and isinstance(found, (int, float)):
        return math.isclose(found, wanted, rel_tol=1e-3)
    return bool(found == wanted)
