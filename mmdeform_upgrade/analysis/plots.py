# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The only module that imports matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .signal import LayerSignal

Curve = Sequence[Tuple[float, float]]
Band = Sequence[Tuple[float, float, float, float]]
SamplingRow = Tuple[Tuple[float, float], Mapping[str, np.ndarray], Mapping[str, np.ndarray]]
Boxes = Sequence[Tuple[str, float, Sequence[float]]]

# Okabe and Ito's colours, which most colour-blind readers can tell apart.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000')


def draw_curves(curves: Mapping[str, Curve], path: Path, *, ylabel: str, title: str, xlabel: str = 'epochs') -> None:
    """Scores over training, one line per run, each starting where its weights came from.

    Args:
        curves: name to (x, score) points.
        path: PNG to write.
        ylabel: the score's name.
        title: data and conditions.
        xlabel: unit of x.
    """
    bands = {name: [(x, y, y, y) for x, y in points] for name, points in curves.items()}
    draw_bands(bands, path, ylabel=ylabel, title=title, xlabel=xlabel, bottom=0)


def draw_bands(
    curves: Mapping[str, Band], path: Path, *, ylabel: str, title: str, xlabel: str, bottom: Optional[float] = None
) -> None:
    """Scores over training of several seeds, one line per arm in a band from the lowest to the highest.

    Args:
        curves: name to (x, mean, lowest, highest) points.
        path: PNG to write.
        ylabel: the score's name.
        title: data and conditions.
        xlabel: unit of x.
        bottom: lower end of the score's axis; None fits it to the curves.
    """
    figure = Figure(figsize=(7.2, 4.2), layout='constrained')
    axes = figure.subplots()
    for (name, points), colour in zip(curves.items(), COLOURS, strict=False):
        if points:
            x, mean, lowest, highest = zip(*points, strict=True)
            axes.fill_between(x, lowest, highest, color=colour, alpha=0.2, linewidth=0)
            axes.plot(x, mean, marker='o', markersize=3, color=colour, label=f'{name} ({mean[-1]:.3f})')
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.set_ylim(bottom=bottom)
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right')
    save(figure, path)


def draw_depths(scores: Mapping[int, Sequence[float]], path: Path, *, ylabel: str, title: str) -> None:
    """Scores over the number of upgraded layers: every seed a dot, their means a line."""
    figure = Figure(figsize=(6, 3.8), layout='constrained')
    axes = figure.subplots()
    depths = sorted(scores)
    axes.plot(depths, [np.mean(scores[depth]) for depth in depths], color=COLOURS[0], label='mean')
    for depth in depths:
        axes.scatter([depth] * len(scores[depth]), scores[depth], color=COLOURS[1], s=16, zorder=3)
    axes.set(xlabel='upgraded layers (0: trained on without)', ylabel=ylabel, title=title, xticks=depths)
    axes.grid(alpha=0.3)
    save(figure, path)


def draw_signal(layers: Sequence[LayerSignal], path: Path, *, title: str) -> None:
    """The signal of each layer's offsets and of its own weights.

    Args:
        layers: from :func:`offset_signal`.
        path: PNG to write.
        title: data and conditions.
    """
    figure = Figure(figsize=(7.2, 1.4 + 0.32 * len(layers)), layout='constrained')
    axes = figure.subplots()
    rows = np.arange(len(layers))
    colours = [COLOURS[2] if layer.verdict == 'learns' else COLOURS[4] for layer in layers]
    axes.barh(rows, [layer.snr - 1 for layer in layers], left=1, color=colours, label='offsets (green: learns)')
    axes.plot([layer.weight_snr for layer in layers], rows, 'd', color=COLOURS[0], markersize=5, label='own weights')
    axes.axvline(1, color=COLOURS[6], linewidth=1, label='pure noise')
    axes.set_yticks(rows, [layer.layer for layer in layers], fontsize=8)
    axes.set(xscale='log', xlabel='|mean|² / (variance / N) of the gradient')
    axes.set_title(title, fontsize=9)
    axes.invert_yaxis()
    axes.legend(fontsize=8)
    save(figure, path)


def draw_sampling(picture: np.ndarray, rows: Sequence[SamplingRow], path: Path) -> None:
    """One row a position: sampling points through one and more layers, then effective receptive fields.

    Args:
        picture: (H, W, 3) RGB.
        rows: for each position its (y, x), point sets by title, and fields (H, W) by title.
        path: PNG to write.
    """
    columns = len(rows[0][1]) + len(rows[0][2])
    height, width = picture.shape[:2]
    figure = Figure(figsize=(2.6 * columns, 2.7 * len(rows) * height / width + 0.3), layout='constrained')
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for line, (at, points, fields) in zip(panels, rows, strict=True):
        for axes, (title, found) in zip(line, points.items(), strict=False):
            axes.imshow(picture)
            axes.scatter(
                found[:, 1],
                found[:, 0],
                s=90 / np.sqrt(len(found)) + 3,
                color=COLOURS[1],
                linewidth=0.4,
                edgecolor='white',
            )
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


def draw_detections(
    pictures: Sequence[np.ndarray], columns: Mapping[str, Sequence[Boxes]], path: Path, classes: Sequence[str]
) -> None:
    """A table of pictures: one row a picture, one column a network, boxes with class and score.

    Args:
        pictures: (H, W, 3) uint8, RGB.
        columns: heading to boxes of each picture: (class name, score, (x1, y1, x2, y2)) in pixels; a score of NaN, as
            of ground truth, is not printed.
        path: PNG to write.
        classes: all class names; the colour of a box is its class.
    """
    colours: Dict[str, str] = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(classes)}
    figure = Figure(figsize=(2.5 * len(columns), 2.6 * len(pictures)), layout='constrained')
    grid = figure.subplots(len(pictures), len(columns), squeeze=False)
    for column, (heading, all_boxes) in enumerate(columns.items()):
        for row, (picture, boxes) in enumerate(zip(pictures, all_boxes, strict=True)):
            axes = grid[row][column]
            axes.imshow(picture)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(heading, fontsize=10)
            for name, score, (x1, y1, x2, y2) in boxes:
                axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1.8, color=colours[name]))
                text = name if np.isnan(score) else f'{name} {score:.2f}'
                axes.text(
                    x1,
                    max(y1, 6),
                    text,
                    fontsize=6.5,
                    color='white',
                    va='bottom',
                    clip_on=True,
                    bbox={'facecolor': colours[name], 'pad': 0.8, 'linewidth': 0},
                )
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure without touching the caller's matplotlib state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={'Software': f'matplotlib {matplotlib.__version__}'})


def table(rows: List[Sequence[str]]) -> str:
    """Rows of text as a Markdown table, the first one its heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + ' |' for row in rows
    ]
    lines.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
    return '\n'.join(lines)
