# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Where an upgraded network looks after its fine-tune, beside what the map did.

python -m benchmarks.camera.picture shapes fisheye --lab work_dirs/camera --out docs/results/camera-offsets.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmdeform_upgrade.analysis.offsets import OffsetRecorder, Record

from . import arms, plans
from .runs import Lab, Run
from .testbeds import TESTBEDS, Geometry
from .training import Job, segmentation_loss, train

SHOWN = 32  # pictures


def stretch(record: Record) -> Tensor:
    """How much wider than without offsets a layer looks, mean over pictures and taps, (Ho, Wo).

    Each outer tap's offset is projected onto its own direction from the middle of the kernel.
    """
    grid = record.grid  # (K, 2, Ho, Wo)
    away = grid - grid[grid.shape[0] // 2]
    length = away.square().sum(1)  # (K, Ho, Wo)
    outer = length[:, 0, 0] > 0
    along = (record.offset.mean(0)[0] * away).sum(1)[outer] / length[outer]
    return 1 + along.mean(0)


def draw(
    pictures: Tensor, shown: int, records: list[Record], geometry: Geometry, size: tuple[int, int], out: Path
) -> None:
    """A picture with the taps of the last layer at some positions, each layer's stretch, and both over the radius."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.9), dpi=130, layout='constrained')
    last, scale = records[-1], size[0] / records[-1].size[0]
    axes[0].imshow(pictures[shown].permute(1, 2, 0).numpy()[..., ::-1])
    for y, x in [(i, j) for i in (0.2, 0.5, 0.8) for j in (0.2, 0.5, 0.8)]:
        row, column = (int(part * side) for part, side in zip((y, x), last.offset.shape[-2:], strict=True))
        taps = (last.positions()[shown, 0, :, :, row, column] + 0.5) * scale
        plain = (last.grid[:, :, row, column] + 0.5) * scale
        axes[0].scatter(plain[:, 1], plain[:, 0], s=9, c='white', edgecolors='black', linewidths=0.4)
        axes[0].scatter(taps[:, 1], taps[:, 0], s=12, c='red', edgecolors='white', linewidths=0.4)
    axes[0].set(
        title=f'{geometry.name}: taps of {last.layer.removeprefix("backbone.")}\nwhite before, red after',
        xticks=[],
        yticks=[],
    )
    picture = axes[1].imshow(stretch(last), cmap='viridis')
    figure.colorbar(picture, ax=axes[1], shrink=0.85, label='width of its taps, 1: plain')
    axes[1].set(title=f'how much wider it samples,\nmean of {len(pictures)} pictures', xticks=[], yticks=[])
    _profile(axes[2], records, geometry, size)
    figure.savefig(out)
    plt.close(figure)


def _profile(axes: object, records: list[Record], geometry: Geometry, size: tuple[int, int]) -> None:
    jacobian = geometry.view(size, 'val', 0).jacobian(size)
    magnification = 1 / np.sqrt(np.abs(np.linalg.det(jacobian)))
    for name, values in [(geometry.name, magnification), *((r.layer, stretch(r).numpy()) for r in records)]:
        height, width = values.shape
        y, x = np.mgrid[0:height, 0:width]
        radius = np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5) * 2
        bins = np.linspace(0, 1, 13)
        which = np.digitize(radius, bins) - 1
        means = [values[which == i].mean() if (which == i).any() else np.nan for i in range(12)]
        style = dict(color='black', linewidth=2) if name == geometry.name else dict(marker='o', markersize=3)
        axes.plot((bins[:-1] + bins[1:]) / 2, means, label=name.removeprefix('backbone.'), **style)  # type: ignore[attr-defined]
    axes.set(
        xlabel='distance from the middle, 1 at the edge',
        ylabel='magnification of the warp, width of the taps',
        ylim=(0, None),
    )  # type: ignore[attr-defined]
    axes.legend(fontsize=8)  # type: ignore[attr-defined]
    axes.grid(alpha=0.3)  # type: ignore[attr-defined]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('bed', choices=sorted(TESTBEDS))
    parser.add_argument('map')
    parser.add_argument('--lab', type=Path, required=True, help='folder of the runs, with the baseline')
    parser.add_argument('--data', type=Path, default=Path('data'))
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--index', type=int, default=0, choices=range(SHOWN), metavar='N', help='which validation picture is shown'
    )
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args(argv)
    lab = Lab(args.lab, args.data)
    recipe = plans.chosen(lab.rows, args.bed, plans.NETWORKS[args.bed][0])['upgraded']
    run = Run(args.bed, plans.NETWORKS[args.bed][0], 'upgraded', args.map, recipe, (args.seed,))
    model = lab._network(run, args.seed)
    train([Job(model, arms.groups(model), lab.data(args.bed, args.map, 'train'), recipe, args.seed)], segmentation_loss)
    pictures = lab.data(args.bed, args.map, 'val').pictures[:SHOWN]
    model.eval()
    with torch.no_grad(), OffsetRecorder(model) as recorder:
        model(pictures)
    records = list(recorder.records.values())
    draw(pictures, args.index, records, Geometry.parse(args.map), TESTBEDS[args.bed].target, args.out)


if __name__ == '__main__':
    main()
