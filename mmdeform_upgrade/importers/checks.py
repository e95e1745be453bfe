# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Settings of a network that would change a foreign baseline's numbers without any name or shape telling.

Each function makes a check: given the network, a line for everything that differs, with the setting to write. A part
that the network lacks is no line here: its names are missing then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .rules import Check


def attribute_of(model: nn.Module, path: str) -> Any:
    """The object at a dotted path of attributes, or None."""
    found: Any = model
    for name in path.split('.'):
        found = getattr(found, name, None)
    return found


def setting(path: str, wanted: Any, config: str = '') -> Check:
    """An attribute of a part has this value; ``config`` is its path in the config where that is another one."""

    def check(model: nn.Module) -> list[str]:
        found = attribute_of(model, path)
        if found is None or _same(found, wanted):
            return []
        return [f'{path} is {found!r}, the weights need {wanted!r}: set model.{config or path}={wanted!r}']

    return check


def norm_eps(accepted: Sequence[float], part: str = 'backbone') -> Check:
    """Batch norms of a part have one of these eps."""

    def check(model: nn.Module) -> list[str]:
        norms = getattr(model, part, nn.Identity()).modules()
        found = {norm.eps for norm in norms if isinstance(norm, nn.modules.batchnorm._BatchNorm)}
        wanted = ' or '.join(f'{eps:g}' for eps in accepted)
        return [
            f'{part} has batch norms of eps {eps:g}, the weights were trained with {wanted}: set model.{part}.norm_cfg.eps'
            for eps in sorted(found)
            if not any(_same(eps, other) for other in accepted)
        ]

    return check


def flips_channels(processor: Any) -> bool:
    """Whether a data preprocessor turns BGR into RGB; mmsegmentation 1.2.2 says so without an underscore."""
    return any(bool(getattr(processor, name, False)) for name in ('_channel_conversion', 'channel_conversion'))


def preprocessing(mean: Sequence[float], std: Sequence[float], rgb: bool) -> Check:
    """Pictures are normalised with these numbers, given in the order of the channels that the network sees."""

    def shown(mean: Sequence[float], std: Sequence[float], rgb: bool) -> str:
        return f'mean={[round(x, 3) for x in mean]}, std={[round(x, 3) for x in std]}, bgr_to_rgb={rgb}'

    def check(model: nn.Module) -> list[str]:
        processor = attribute_of(model, 'data_preprocessor')
        if not isinstance(getattr(processor, 'mean', None), Tensor):
            return []
        found = (processor.mean.flatten().tolist(), processor.std.flatten().tolist(), flips_channels(processor))
        if _same(found, (list(mean), list(std), rgb)):
            return []
        needed = shown(mean, std, rgb)
        return [f'data_preprocessor has {shown(*found)}; the weights need {needed}: set model.data_preprocessor']

    return check


IMAGENET_RGB = preprocessing([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], True)


def box_stds(head: str, stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)) -> Check:
    """A head's box coder divides by these standard deviations."""
    return setting(f'{head}.bbox_coder.stds', stds, f'{head}.bbox_coder.target_stds')


def extra_levels(weight: Tensor | None) -> list[Check]:
    """FPN's sixth and seventh level as both torchvision and Detectron2 compute them, by the weight of the sixth."""
    if weight is None:
        return []
    source = 'on_output' if weight.shape[0] == weight.shape[1] else 'on_input'
    return [setting('neck.add_extra_convs', source), setting('neck.relu_before_extra_convs', True)]


def roi_align(**wanted: Any) -> list[Check]:
    """RoIAlign has these settings, for boxes and for masks."""
    extractors = [f'roi_head.{kind}_roi_extractor' for kind in ('bbox', 'mask')]
    return [
        setting(f'{extractor}.roi_layers.0.{name}', value, f'{extractor}.roi_layer.{name}')
        for extractor in extractors
        for name, value in wanted.items()
    ]


def anchors(head: str, expected: Sequence[Tensor], tolerance: float) -> Check:
    """The anchors of a cell, a level each, (A, 4) corners in pixels, in the order of the outputs."""

    def check(model: nn.Module) -> list[str]:
        found: Sequence[Tensor] | None = attribute_of(model, f'{head}.prior_generator.base_anchors')
        if found is None:
            return []
        todo = f'set model.{head}.anchor_generator'
        if len(found) != len(expected):
            return [f'{head} has {len(found)} levels of anchors, the weights {len(expected)}: {todo}']
        for level, (have, want) in enumerate(zip(found, expected, strict=True)):
            if have.shape != want.shape or float((have.cpu() - want).abs().max()) > tolerance:
                return [
                    f'{head}: anchors of level {level} are {_corners(have)}, the weights need {_corners(want)}: {todo}'
                ]
        return []

    return check


def boxes_of(sides: Tensor, centre: float | Tensor = 0.0) -> Tensor:
    """Corners, (A, 4), of boxes of some width and height, (A, 2), around points, (A, 2), or one of the diagonal."""
    return torch.cat([centre - sides / 2, centre + sides / 2], 1)


def cell_anchors(sizes: Sequence[Sequence[float]]) -> list[Tensor]:
    """Anchors around the origin, (3 * sizes, 4) a level: for height / width of 0.5, 1 and 2 all sizes."""
    return [
        boxes_of(torch.tensor([(size / ratio**0.5, size * ratio**0.5) for ratio in (0.5, 1.0, 2.0) for size in level]))
        for level in sizes
    ]


def rpn_anchors(tolerance: float) -> Check:
    """An RPN with FPN has one size a level, as in the papers."""
    return anchors('rpn_head', cell_anchors([[32], [64], [128], [256], [512]]), tolerance)


def _corners(boxes: Tensor) -> list[list[float]]:
    return boxes.double().round(decimals=2).tolist()


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, (tuple, list)):
        return isinstance(found, (tuple, list)) and len(found) == len(wanted) and all(map(_same, found, wanted))
    if type(wanted) is float and isinstance(found, (int, float)):
        return math.isclose(found, wanted, rel_tol=1e-3)
    return bool(found == wanted)
