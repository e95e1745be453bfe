# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Settings of a network that would change a foreign baseline's numbers without any name or shape telling.

Each function makes a check: given the network, a line for everything that differs, with the setting to write. A part
that the network lacks is no line here: its names are missing then.
"""

from __future__ import annotations

from typing import Any, List, Optional, Sequence

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

    def check(model: nn.Module) -> List[str]:
        norms = [
            module
            for name, module in model.named_modules()
            if name.startswith(f'{part}.') and isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        wrong = sorted({module.eps for module in norms if not any(_near(module.eps, eps) for eps in accepted)})
        return (
            [
                f'{part} has batch norms of eps {wrong[0]:g}, the weights were trained with '
                f'{" or ".join(f"{eps:g}" for eps in accepted)}: set model.{part}.norm_cfg.eps'
            ]
            if wrong
            else []
        )

    return check


def stride_in(conv: str, style: str) -> Check:
    """Bottlenecks of the backbone have their stride in this convolution."""

    def check(model: nn.Module) -> List[str]:
        strides = {
            name: module.stride
            for name, module in model.named_modules()
            if name.startswith('backbone.layer')
            and name.endswith(('.0.conv1', '.0.conv2'))
            and part_of(model, f'{name.rpartition(".")[0]}.conv3') is not None
        }
        wrong = [name for name, stride in strides.items() if max(stride) > 1 and not name.endswith(conv)]
        return (
            [f"{wrong[0]} has the stride, in this file's network {conv} has it: set model.backbone.style='{style}'"]
            if wrong
            else []
        )

    return check


def flips_channels(processor: Any) -> bool:
    """Whether a data preprocessor turns BGR into RGB; mmsegmentation 1.2.2 says so without an underscore."""
    return any(bool(getattr(processor, name, False)) for name in ('_channel_conversion', 'channel_conversion'))


def preprocessing(mean: Sequence[float], std: Sequence[float], rgb: bool) -> Check:
    """Pictures are normalised with these numbers, given in the order of the channels that the network sees."""

    def check(model: nn.Module) -> List[str]:
        processor = part_of(model, 'data_preprocessor')
        if not isinstance(getattr(processor, 'mean', None), Tensor):
            return []
        found: List[Any] = [
            processor.mean.flatten().tolist(),
            processor.std.flatten().tolist(),
            flips_channels(processor),
        ]
        wanted: List[Any] = [list(mean), list(std), rgb]
        if found[2] == rgb and _close(found[0], mean, 0.05) and _close(found[1], std, 0.05):
            return []
        shown = [
            f'mean={[round(x, 3) for x in a]}, std={[round(x, 3) for x in b]}, bgr_to_rgb={c}'
            for a, b, c in (found, wanted)
        ]
        return [f'data_preprocessor has {shown[0]}; the weights need {shown[1]}: set model.data_preprocessor']

    return check


def setting(path: str, wanted: Any, config: str) -> Check:
    """An attribute of a part has this value."""

    def check(model: nn.Module) -> List[str]:
        owner, _, name = path.rpartition('.')
        part = part_of(model, owner)
        if part is None or not hasattr(part, name) or _equal(getattr(part, name), wanted):
            return []
        return [f'{path} is {getattr(part, name)!r}, the weights need {wanted!r}: set {config}']

    return check


def roi_align(aligned: bool, sampling_ratio: int, extractors: Sequence[str]) -> Check:
    """RoIAlign samples like this."""

    def check(model: nn.Module) -> List[str]:
        problems = []
        for extractor in extractors:
            layers = part_of(model, f'{extractor}.roi_layers')
            found = {(layer.aligned, layer.sampling_ratio) for layer in layers} if layers is not None else set()
            if found - {(aligned, sampling_ratio)}:
                shown = sorted(found)[0]
                problems.append(
                    f'{extractor} has aligned={shown[0]}, sampling_ratio={shown[1]}; the weights need '
                    f'aligned={aligned}, sampling_ratio={sampling_ratio}: set '
                    f'model.{extractor}.roi_layer'
                )
        return problems

    return check


def anchors(head: str, expected: Sequence[Tensor], tolerance: float) -> Check:
    """The anchors of a cell, a level each, (A, 4) corners in pixels, in the order of the outputs."""

    def check(model: nn.Module) -> List[str]:
        found: Optional[Sequence[Tensor]] = part_of(model, f'{head}.prior_generator.base_anchors')
        if found is None:
            return []
        if len(found) != len(expected):
            return [
                f'{head} has {len(found)} levels of anchors, the weights {len(expected)}: set '
                f'model.{head}.anchor_generator'
            ]
        for level, (have, want) in enumerate(zip(found, expected, strict=True)):
            if have.shape != want.shape or float((have.cpu() - want).abs().max()) > tolerance:
                return [
                    f'{head}: anchors of level {level} are {_boxes(have)}, the weights need {_boxes(want)}: set '
                    f'model.{head}.anchor_generator'
                ]
        return []

    return check


def cell_anchors(sizes: Sequence[Sequence[float]], ratios: Sequence[float]) -> List[Tensor]:
    """Anchors around the origin, (ratios * sizes, 4) a level: for each ratio (height / width) all sizes."""
    levels = []
    for level in sizes:
        boxes = [(size / ratio**0.5, size * ratio**0.5) for ratio in ratios for size in level]
        levels.append(torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in boxes]))
    return levels


def _boxes(boxes: Tensor) -> str:
    sides = [f'{x2 - x1:.0f}x{y2 - y1:.0f}' for x1, y1, x2, y2 in boxes.tolist()]
    centre = [round((a + b) / 2, 1) for a, b in (boxes[0, 0::2].tolist(), boxes[0, 1::2].tolist())]
    return f'{", ".join(sides)} at {centre}'


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-3 * max(abs(a), abs(b))


def _close(a: Sequence[float], b: Sequence[float], tolerance: float) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, (tuple, list)):
        return (
            isinstance(found, (tuple, list))
            and len(found) == len(wanted)
            and all(_equal(a, b) for a, b in zip(found, wanted, strict=True))
        )
    return _near(found, wanted) if type(wanted) is float and isinstance(found, (int, float)) else found == wanted
