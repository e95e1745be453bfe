# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Tables and pictures from finished runs.

    python -m benchmarks.camera.report work_dirs/camera/results.jsonl --keep docs/results/camera.json
    python -m benchmarks.camera.report docs/results/camera.json --out docs/results/camera

``--keep`` writes the rows, one a line; ``--out`` writes ``OUT.md``, ``OUT-curves.png`` and ``OUT.html``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..page import Page
from .plans import tune_steps
from .tables import (
    NAMES,
    Row,
    arms_table,
    axis_table,
    doses,
    keep,
    labels_table,
    lengths_table,
    load,
    of_any_baseline,
    reaches,
    same_table,
    select,
    series,
)

COLOURS = {'untouched': '0.6', 'control': '0.25', '5x5': 'tab:orange', 'upgraded': 'tab:blue', 'offsets': 'tab:green'}


class Panel(NamedTuple):
    """Scores of arms over an axis."""

    rows: Sequence[Row]
    axis: str
    title: str
    xlabel: str


def draw(panels: Sequence[Panel], file: Path) -> None:
    """Panels side by side, with 95 % intervals."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure, grid = plt.subplots(rows, columns, figsize=(3.6 * columns, 3.6 * rows), dpi=110, squeeze=False)
    drawn: dict[str, Any] = {}
    for panel, axes in zip(panels, grid.flat, strict=False):
        ticks: set[float] = set()
        for arm, colour in COLOURS.items():
            points = [p for p in series(panel.rows, panel.axis, arm) if not math.isnan(p[2])]  # of several baselines
            if len(points) > 1:
                x, y, half = zip(*points, strict=True)
                drawn[arm] = axes.errorbar(x, y, yerr=half, marker='o', ms=4, capsize=3, color=colour)
                ticks.update(x)
        axes.set(xlabel=panel.xlabel, title=panel.title)
        if panel.axis != 'dose':
            axes.set_xscale('linear' if panel.axis == 'stages' else 'log')
            at = sorted(ticks)
            axes.set_xticks(at, [f'{t:g}' for t in at])
            axes.minorticks_off()
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel('test score')
    names = [NAMES[arm].replace('*', '') for arm in drawn]
    figure.tight_layout(rect=(0, 0.1 / rows, 1, 1))
    figure.legend(drawn.values(), names, loc='lower center', ncols=len(names), frameon=False, fontsize=9)
    figure.savefig(file)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', type=Path)
    parser.add_argument('--keep', type=Path, help='write the rows, one a line')
    parser.add_argument('--out', type=Path, help='write OUT.md, OUT-curves.png and OUT.html')
    args = parser.parse_args(argv)
    rows = load(args.files)
    if args.keep:
        keep(rows, args.keep)
    text = report(rows, args.out)
    print(text)
    if args.out:
        args.out.with_suffix('.md').write_text(text, encoding='utf8')
        page = Page('After a change of camera')
        page.markdown(text)
        if (file := _curves(args.out)).is_file():
            page.picture(file)
        page.heading('Repeat it')
        page.command('python -m benchmarks.camera.report ' + ' '.join(map(str, args.files)) + f' --out {args.out}')
        page.write(args.out.with_suffix('.html'))


def report(rows: Sequence[Row], out: Path | None) -> str:
    """All tables that the rows have; their curves beside ``out``."""
    parts, panels = [], []
    own = of_any_baseline(rows, arm='control', labels=None, source='identity')
    own = [r for r in own if r['steps'] == tune_steps(r['bed'], r['network']) and r['geometry'] != 'identity']
    parts += [arms_table(rows, *s) for s in sorted({(r['bed'], r['network'], r['geometry'], r['factor']) for r in own})]
    settings = sorted({(r['bed'], r['network'], r['geometry']) for r in own if r['factor'] == 1})
    for bed, network, geometry in settings:
        title = f'{bed}, {geometry}'
        for source in ('identity', geometry):
            own = select(rows, bed=bed, network=network, geometry=geometry, source=source, labels=None)
            own = [r for r in own if r['steps']]
            if len({r['steps'] for r in own if r['arm'] == 'upgraded'}) > 1:
                parts.append(lengths_table(rows, bed, network, geometry, source))
                panels.append(Panel(own, 'steps', title, 'steps'))
        own = [r for r in select(rows, bed=bed, network=network, geometry=geometry) if r['labels']]
        if own:
            parts.append(labels_table(rows, bed, network, geometry))
            panels.append(Panel(own, 'labels', title, f'labelled pictures, {own[0]["steps"]} steps'))
    axes = [
        (doses(rows, 'zoom'), 'dose', 'shapes, zoom', 'magnification'),
        (doses(rows, 'anisotropic'), 'dose', 'shapes, along one axis', 'magnification'),
        (reaches(rows), 'stages', 'shapes, fisheye', 'stages of the network'),
    ]
    for own, axis, title, label in axes:
        if len({r[axis] for r in own}) > 1:
            parts.append(axis_table(own, axis, f'{title}: {label}'))
            panels.append(Panel(own, axis, title, label))
    if out and panels:
        draw(panels, _curves(out))
    beds = sorted({(r['bed'], r['network']) for r in rows if r['arm'] == 'control' and r['geometry'] == 'identity'})
    parts += [same_table(rows, *bed) for bed in beds]
    return '\n'.join(parts)


def _curves(out: Path) -> Path:
    return out.with_name(f'{out.name}-curves.png')


if __name__ == '__main__':
    main()
