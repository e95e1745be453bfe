# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Curves, tables and pictures of the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mmdeform_upgrade.analysis.plots import COLOURS, save

Curve = Sequence[tuple[float, float]]
Band = Sequence[tuple[float, float, float, float]]


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
    curves: Mapping[str, Band], path: Path, *, ylabel: str, title: str, xlabel: str, bottom: float | None = None
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
            axes.plot(x, mean, marker='o', markersize=3, color=colour, label=f'{name} ({mean[-1]:.3g})')
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


def table(rows: list[Sequence[str]]) -> str:
    """Rows of text as a Markdown table, the first one its heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + ' |' for row in rows
    ]
    lines.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
    return '\n'.join(lines)
