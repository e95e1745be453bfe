# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The only module that imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .signal import LayerSignal

SamplingRow = tuple[tuple[float, float], Mapping[str, np.ndarray], Mapping[str, np.ndarray]]

# Okabe and Ito's colours, which most colour-blind readers can tell apart.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000')


def draw_signal(layers: Sequence[LayerSignal], path: Path, *, title: str) -> None:
    """The signal of each layer's offsets and of its own weights, as a PNG; ``title`` names data and conditions."""
    figure = Figure(figsize=(7.2, 1.4 + 0.32 * len(layers)), layout='constrained')
    axes = figure.subplots()
    rows = np.arange(len(layers))
    for verdict, colour in (('learns', COLOURS[2]), ('noise', COLOURS[4])):
        own = [i for i, layer in enumerate(layers) if layer.verdict == verdict]
        axes.barh(own, [layers[i].snr - 1 for i in own], left=1, color=colour, label=f'offsets: {verdict}')
    axes.plot([layer.weight_snr for layer in layers], rows, 'd', color=COLOURS[0], markersize=5, label='own weights')
    axes.axvline(1, color=COLOURS[6], linewidth=1, label='pure noise')
    axes.set_yticks(rows, [layer.layer for layer in layers], fontsize=8)
    axes.set(xscale='log', xlabel='|mean|² / (variance / N) of the gradient')
    axes.set_title(title, fontsize=9)
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_formatter('{x:g}')
    axes.invert_yaxis()
    axes.legend(fontsize=8)
    save(figure, path)


def draw_sampling(picture: np.ndarray, rows: Sequence[SamplingRow], path: Path) -> None:
    """One row a position: sampling points through one and more layers, then effective receptive fields, as a PNG.

    ``picture`` is (H, W, 3) RGB; a row has its position (y, x), point sets by title, and fields (H, W) by title.
    """
    columns = len(rows[0][1]) + len(rows[0][2])
    height, width = picture.shape[:2]
    figure = Figure(figsize=(2.6 * columns, 2.7 * len(rows) * height / width + 0.3), layout='constrained')
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for line, (at, points, fields) in zip(panels, rows, strict=True):
        for axes, (title, found) in zip(line, points.items(), strict=False):
            axes.imshow(picture)
            size = 90 / np.sqrt(len(found)) + 3
            axes.scatter(*found[:, [1, 0]].T, s=size, color=COLOURS[1], linewidth=0.4, edgecolor='white')
            axes.set_title(title, fontsize=9)
        for axes, (title, field) in zip(line[len(points) :], fields.items(), strict=True):
            axes.imshow(picture.mean(2), cmap='gray', alpha=0.5)
            # Fields have long tails: the root shows their extent.
            axes.imshow(np.sqrt(field), cmap='inferno', alpha=0.75)
            axes.set_title(title, fontsize=9)
        for axes in line:
            axes.plot(at[1], at[0], '+', color=COLOURS[2], markersize=11, markeredgewidth=2)
            axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure without touching the caller's matplotlib state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={'Software': f'matplotlib {matplotlib.__version__}'})
