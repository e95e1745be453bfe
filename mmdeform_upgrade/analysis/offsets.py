# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Where upgraded layers look: recorded offsets, their statistics, and sampling points through stacked layers.

Vocabulary: N, C, H, W a layer's input; K = kh * kw taps; G deform groups; Ho, Wo its output; positions are (y, x).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import ZeroOffsetDCN, upgraded_layers
from ..ops.autograd import run_uncompiled
from ..ops.geometry import describe
from ..ops.reference import sample_points
from .complexity import hooked


@dataclass(frozen=True)
class Record:
    """Offsets of one layer in one forward pass, and the geometry that they belong to."""

    layer: str  # its dotted name
    offset: Tensor  # (N, G, K, 2, Ho, Wo) in pixels of the layer's input, (dy, dx)
    size: tuple[int, int]  # (H, W) of the layer's input
    grid: Tensor  # (K, 2, Ho, Wo), where the taps would be without offsets

    def positions(self) -> Tensor:
        """Where every sample was taken, (N, G, K, 2, Ho, Wo)."""
        return self.offset + self.grid


class OffsetRecorder(ExitStack):
    """Context manager that keeps the offsets of every ``ZeroOffsetDCN`` in a model, which runs uncompiled meanwhile.

    ``records`` holds them in the order in which the layers ran. Of a layer that runs on several levels it is the pass
    over the largest map, the latest of several such.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.records: dict[str, Record] = {}
        self._layers = upgraded_layers(model)

    def __enter__(self) -> OffsetRecorder:
        run_uncompiled(True)
        self.callback(run_uncompiled, False)
        for name, layer in self._layers.items():
            self.enter_context(layer.conv_offset.register_forward_hook(partial(self._keep, name, layer)))
        return self

    def _keep(self, name: str, layer: ZeroOffsetDCN, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        known = self.records.pop(name, None)  # a layer that runs again moves to the end
        if known is not None and known.offset.numel() > output.numel():
            self.records[name] = known
            return
        input, *steps = args
        geo = describe(input, output, layer.weight, None, None, *steps)
        offset = output.detach().float().view(geo.N, geo.G, geo.K, 2, geo.Ho, geo.Wo)
        taps = sample_points(torch.zeros_like(offset[0, 0]), geo._replace(N=1, G=1))
        grid = torch.stack((taps.y0, taps.x0), 3).view(offset[0, 0].shape)
        self.records[name] = Record(name, offset, (geo.H, geo.W), grid)


@dataclass(frozen=True)
class OffsetStatistics:
    """One layer's offsets in numbers; lengths in pixels of its input."""

    mean: float
    percentile95: float  # the length that 95 % of the offsets do not pass
    largest: float  # NaN or infinity if any offset is
    outside: float  # share of taps that read nothing, since they are a pixel or more outside the map


def statistics(record: Record) -> OffsetStatistics:
    """Statistics over all pictures, groups, taps and positions of a record."""
    length = torch.linalg.vector_norm(record.offset, dim=3).flatten()
    if not length.numel():
        return OffsetStatistics(0.0, 0.0, 0.0, 0.0)
    outside = _outside(record.positions(), record.size)
    return OffsetStatistics(float(length.mean()), percentile95(length), float(length.max()), outside)


def share_that_left(record: Record) -> float:
    """Of the taps that read something without offsets, the share that is outside of the map with them."""
    before = _outside(record.grid[None, None], record.size)
    return (_outside(record.positions(), record.size) - before) / max(1 - before, 1e-9)


def _outside(positions: Tensor, size: tuple[int, int]) -> float:
    y, x = positions.unbind(3)
    return float(((y <= -1) | (y >= size[0]) | (x <= -1) | (x >= size[1])).float().mean())


def percentile95(length: Tensor) -> float:
    """The length that 95 % of the lengths, one dimension of at least one, do not pass."""
    rank = max(1, -(-95 * length.numel() // 100))  # torch.quantile takes at most 16 million numbers
    return float(length.kthvalue(rank).values)


def sampling_points(
    records: Sequence[Record], position: tuple[float, float], image: tuple[int, int], depth: int, group: int = 0
) -> Tensor:
    """Points of the picture that one output position reads through the last ``depth`` layers (Dai et al., figure 6).

    Each tap of a layer reads an output position of the layer before, the nearest one, whose taps are followed in turn;
    convolutions between the layers are not.

    Args:
        records: of one picture, in the order in which the layers ran.
        position: (y, x) in pixels of the picture; the nearest output position of the last layer is taken.
        image: (height, width) of the picture as the network saw it.
        depth: how many layers, from the last one back.
        group: which deform group, where a layer has several (its last one where it has fewer).

    Returns:
        (K**depth, 2) positions (y, x) in pixels of the picture.
    """
    points = torch.tensor([position], dtype=torch.float64)
    size = image
    for record in reversed(list(records)[-depth:]):
        out = (record.offset.shape[-2], record.offset.shape[-1])
        y, x = nearest(points, size, out).unbind(1)
        taps = record.positions()[0, min(group, record.offset.shape[1] - 1)]  # (K, 2, Ho, Wo)
        points = taps[:, :, y, x].permute(2, 0, 1).reshape(-1, 2).double()
        size = record.size
    return _rescaled(points, size, image)


def nearest(points: Tensor, size: Sequence[int], to: Sequence[int]) -> Tensor:
    """Indices, (P, 2), of a map's positions that are nearest to points (y, x) of another map or the picture."""
    return torch.minimum(_rescaled(points, size, to).round().long().clamp(min=0), torch.tensor(to) - 1)


def _rescaled(points: Tensor, size: Sequence[int], to: Sequence[int]) -> Tensor:
    """Centres of pixels stay centres: a map's pixel stands for the middle of what it covers."""
    scale = torch.tensor([to[axis] / size[axis] for axis in (0, 1)], dtype=points.dtype)
    return (points + 0.5) * scale - 0.5


@torch.no_grad()
def scatter_offsets_(model: nn.Module, sigma: float, run: Callable[[], Any]) -> None:
    """Give every offset branch random weights such that its offsets spread by ``sigma`` pixels in one ``run``.

    At step 0 all offsets are zero, which reads memory in order; a timing should not rely on that.
    """

    def fit(branch: nn.Module, args: Any, output: Tensor) -> Tensor:
        factor = sigma / output.std().clamp_min(1e-12)
        branch.get_parameter('weight').mul_(factor)
        return output * factor

    branches = [layer.conv_offset for layer in upgraded_layers(model).values()]
    for branch in branches:
        nn.init.normal_(branch.weight)
    with hooked(branch.register_forward_hook(fit) for branch in branches):
        run()
