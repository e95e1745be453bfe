# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What an upgrade costs, in a few seconds: sizes of maps, multiplications, and the time of a training step."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..analysis.complexity import PLAIN, hooked, multiplications
from ..analysis.offsets import scatter_offsets_
from ..analysis.receptive_field import computed_from
from ..errors import ConfigError
from ..layers import upgraded_layers
from .preflight import build_network

Size = tuple[int, int]
_LARGEST, _TIMED, _USUAL = 1344, 256, 512  # pixels of a side: looked at, timed, and where the config names none
_ROUNDS = 3
_SPREAD = 1.5  # of the offsets, in pixels


@dataclass(frozen=True)
class Cost:
    """An upgrade beside its baseline."""

    size: Size  # (height, width) of the picture
    where: str  # the parts that were run
    maps: dict[Size, int]  # sizes of the upgraded layers' outputs, and how many layers have each
    flops: tuple[float, float]  # multiplications with their additions, one picture, before and after
    step: tuple[float, float]  # seconds of a forward and backward pass, before and after
    timed: Size  # (height, width) of the pictures that these take
    missed: list[int]  # strides of the maps of a head that no upgraded layer has a part in

    def __str__(self) -> str:
        maps = ', '.join(f'{h}x{w} ({count})' for (h, w), count in self.maps.items())
        (before, after), (plain, deformable) = self.flops, self.step
        missed = ', '.join(map(str, self.missed))
        note = (
            f'\nno upgraded layer has a part in the maps of stride {missed}: to gain on the objects that the heads read from '
            'these, name layers before (--targets)'
        )
        return (
            f'at {self.size[0]}x{self.size[1]}: maps {maps}; GFLOPs {before / 1e9:.3g} -> {after / 1e9:.3g} '
            f'(+{100 * (after / before - 1):.1f} %), {self.where}\n'
            f'training step of these on this CPU, {self.timed[0]}x{self.timed[1]}: {deformable / plain:.2f} times the '
            f"baseline's{note if missed else ''}"
        )


def describe_cost(before: Config, after: nn.Module) -> str:
    """:func:`measure_cost` as text; why not, where a network cannot be run on random pictures."""
    try:
        return str(measure_cost(before, after))
    except Exception as error:  # of any framework's network
        return f'cost: not measured ({type(error).__name__}: {error})'


def measure_cost(before: Config, after: nn.Module) -> Cost:
    """Build the baseline, and run its backbone and neck and the upgrade's on random pictures.

    The offsets of ``after``, the upgraded network, are random afterwards.
    """
    networks: list[Any] = [build_network(before), after]
    for network in networks:
        network.train()  # which returns nothing in mmdet's distillation
    size = picture_size(before)
    timed = (min(size[0], _TIMED), min(size[1], _TIMED))
    run, where = _features, 'backbone and neck'
    flops, maps = _flops(run, networks[1], size)
    if not maps:  # the upgraded layers are in a head
        run, where = _outputs, 'backbone, neck and heads'
        flops, maps = _flops(run, networks[1], size)
    if not maps:
        raise ConfigError('none of the upgraded layers runs in inference')
    pictures = torch.randn(2, 3, *timed)
    scatter_offsets_(networks[1], _SPREAD, lambda: run(networks[1], pictures))
    times: list[list[float]] = [[], []]
    for _ in range(_ROUNDS):
        for network, spent in zip(networks, times, strict=True):
            start = time.perf_counter()
            features = tree_flatten(run(network, pictures))[0]
            torch.stack([feature.mean() for feature in features if isinstance(feature, Tensor)]).sum().backward()
            spent.append(time.perf_counter() - start)
    return Cost(size, where, maps, flops, (min(times[0]), min(times[1])), timed, _missed(networks[1], pictures))


def picture_size(cfg: Mapping[str, Any]) -> Size:
    """(height, width) of the pictures that a config trains on, as far as its pipeline says it."""
    loader = cfg.get('train_dataloader') or {}
    dataset: Any = loader.get('dataset') or {}
    found: Any = None
    for transform in _pipeline(dataset):
        if crop := transform.get('crop_size'):
            found = crop
        elif scale := transform.get('scale') or transform.get('img_scale'):
            scale = scale[0] if isinstance(scale, (list, tuple)) and isinstance(scale[0], (list, tuple)) else scale
            found = tuple(reversed(scale)) if isinstance(scale, (list, tuple)) else scale  # (width, height)
    found = found or _USUAL
    height, width = found if isinstance(found, (list, tuple)) else (found, found)
    factor = min(1.0, _LARGEST / max(height, width))
    return max(32, int(height * factor) // 32 * 32), max(32, int(width * factor) // 32 * 32)


def _pipeline(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """Transforms of a data set, inner ones of a wrapper first."""
    if isinstance(dataset, Mapping):
        yield from _pipeline(dataset.get('dataset'))
        yield from (t for t in dataset.get('pipeline') or () if isinstance(t, Mapping))


def _features(network: Any, pictures: Tensor) -> Any:
    return network.extract_feat(pictures)


def _outputs(network: Any, pictures: Tensor) -> Any:
    """What the heads make of pictures, before any postprocessing."""
    sample = BaseDataElement(metainfo=dict.fromkeys(('img_shape', 'batch_input_shape'), tuple(pictures.shape[-2:])))
    return network(pictures, [sample] * len(pictures), mode='tensor')


@torch.no_grad()
def _flops(run: Callable[[Any, Tensor], Any], network: Any, size: Size) -> tuple[tuple[float, float], dict[Size, int]]:
    maps: Counter[Size] = Counter()

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        maps[output.shape[-2], output.shape[-1]] += 1

    layers = upgraded_layers(network).values()
    with hooked(layer.register_forward_hook(count) for layer in layers), multiplications(network) as counts:
        network.eval()
        run(network, torch.zeros(1, 3, *size))
    network.train()
    return (counts[PLAIN], sum(counts.values())), dict(maps)


def _missed(network: Any, pictures: Tensor) -> list[int]:
    """Strides of the maps that the heads put out, of which none was computed with any offsets."""
    try:
        network.eval()
        outputs = tree_flatten(_outputs(network, pictures))[0]
    except Exception:  # of heads that want more
        return []
    offsets = {id(layer.conv_offset.weight) for layer in upgraded_layers(network).values()}
    found: dict[int, bool] = {}
    for level in outputs:
        if isinstance(level, Tensor) and level.dim() == 4:
            stride = round(pictures.shape[-1] / level.shape[-1])
            found[stride] = found.get(stride, False) or not offsets.isdisjoint(_parameters(level))
    return [stride for stride, has_offsets in found.items() if not has_offsets]


def _parameters(output: Tensor) -> Iterator[int]:
    """Those that a tensor was computed from, by id."""
    return (id(node.variable) for node in computed_from(output.grad_fn) if hasattr(node, 'variable'))
