# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Tables and pictures from finished runs.

    python -m benchmarks.camera.report work_dirs/camera/results.jsonl --keep docs/results/camera.json
    python -m benchmarks.camera.report docs/results/camera.json --out docs/results/camera

``--keep`` writes the rows, one a line; ``--out`` writes ``OUT.md``, ``OUT-*.png`` and ``OUT.html``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..page import Page
from .plans import TUNE_STEPS
from .tables import (
    NAMES,
    ORDER,
    Row,
    arms_table,
    axis_table,
    doses,
    keep,
    labels_table,
    lengths_table,
    load,
    reaches,
    same_table,
    select,
    series,
)

COLOURS = {'untouched': '0.6', 'control': '0.25', '5x5': 'tab:orange', 'upgraded': 'tab:blue', 'offsets': 'tab:green'}


def draw(rows: Sequence[Row], axis: str, file: Path, title: str, xlabel: str, arms: Sequence[str] = ORDER) -> None:
    """Scores of arms over an axis, with 95 % intervals."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), dpi=130)
    for arm in arms:
        points = series(rows, axis, arm)
        if not points:
            continue
        x, y, half = zip(*points, strict=True)
        name = NAMES[arm].replace('*', '')
        axes.errorbar(x, y, yerr=half, marker='o', capsize=3, label=name, color=COLOURS.get(arm))
    axes.set(xlabel=xlabel, ylabel='test score', title=title)
    if axis in ('steps', 'labels'):
        ticks = sorted({r[axis] for r in rows})
        axes.set_xscale('log')
        axes.set_xticks(ticks, [f'{t:g}' for t in ticks])
        axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', type=Path)
    parser.add_argument('--keep', type=Path, help='write the rows, one a line')
    parser.add_argument('--out', type=Path, help='write OUT.md, OUT-*.png and OUT.html')
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
        for file in sorted(args.out.parent.glob(f'{args.out.name}-*.png')):
            page.picture(file)
        page.heading('Repeat it')
        page.command('python -m benchmarks.camera.report ' + ' '.join(map(str, args.files)) + f' --out {args.out}')
        page.write(args.out.with_suffix('.html'))


def report(rows: Sequence[Row], out: Path | None) -> str:
    """All tables that the rows have; pictures beside ``out``."""
    parts = []
    own = select(rows, arm='control', labels=None, source='identity')
    own = [r for r in own if r['steps'] == TUNE_STEPS[r['bed']] and r['geometry'] != 'identity']
    settings = sorted({(r['bed'], r['network'], r['geometry']) for r in own})
    parts += [arms_table(rows, *setting) for setting in settings]
    for bed, network, geometry in settings:
        for source in ('identity', geometry):
            own = select(rows, bed=bed, network=network, geometry=geometry, source=source, labels=None)
            own = [r for r in own if r['steps']]
            if len({r['steps'] for r in own if r['arm'] == 'upgraded'}) < 2:
                continue
            parts.append(lengths_table(rows, bed, network, geometry, source))
            if out:
                name = out.with_name(f'{out.name}-{bed}-{geometry}-steps.png')
                draw(own, 'steps', name, f'{bed}, {geometry}', 'steps')
        own = [r for r in select(rows, bed=bed, network=network, geometry=geometry) if r['labels']]
        if own:
            parts.append(labels_table(rows, bed, network, geometry))
            if out:
                name = out.with_name(f'{out.name}-{bed}-{geometry}-labels.png')
                draw(own, 'labels', name, f'{bed}, {geometry}', 'labelled pictures')
    axes = [(doses(rows, kind), 'dose', f'shapes, {kind}: magnification') for kind in ('zoom', 'anisotropic')]
    for own, axis, title in [*axes, (reaches(rows), 'stages', 'shapes, fisheye: stages of the network')]:
        if len({r[axis] for r in own}) > 1:
            parts.append(axis_table(own, axis, title))
            if out:
                draw(
                    own,
                    axis,
                    out.with_name(f'{out.name}-{title.split(":")[0].replace(", ", "-")}-{axis}.png'),
                    title,
                    axis,
                )
    beds = sorted({(r['bed'], r['network']) for r in rows if r['arm'] == 'control' and r['geometry'] == 'identity'})
    parts += [same_table(rows, *bed) for bed in beds]
    return '\n'.join(parts)


if __name__ == '__main__':
    main()
