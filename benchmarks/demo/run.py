# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The main job on generated data: a baseline, its upgrade, and the honest control; a table and two pictures."""

import argparse
from pathlib import Path

from benchmarks.demo import job as demo
from mmdeform_upgrade.mm import command_line


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('demo_output'), help='folder for everything')
    parser.add_argument('--seed', type=int, default=0)
    for name, default in vars(demo.Sizes()).items():
        parser.add_argument(f'--{name}', type=int, default=default, help='default: %(default)s')
    args = parser.parse_args(argv)
    sizes = demo.Sizes(args.train, args.val, args.test, args.epochs, args.batch)
    results = demo.run(args.out, sizes, args.seed)

    from benchmarks import plots

    rows = [(name, epochs, f'{100 * score:.2f}') for name, epochs, score in results.rows]
    table = plots.table([('network', 'epochs', 'test mAP (%)'), *rows])
    (args.out / 'table.md').write_text(table + '\n', encoding='utf8')
    title = f'generated deformable shapes, {sizes.train} pictures, seed {args.seed}'
    plots.draw_curves(results.curves, args.out / 'curves.png', ylabel='validation mAP', title=title)
    pictures, columns, classes = demo.look(args.out, 4, sizes.epochs)
    plots.draw_detections(pictures, columns, args.out / 'detections.png', classes)
    same = results.rows[0][2] == results.rows[1][2]
    print(f'\n{table}\n')
    print(
        'Before its first step the upgraded network scores '
        + ('exactly what the baseline scores.' if same else 'something else than the baseline: this is a fault.')
    )
    gain = results.rows[2][2] - results.rows[3][2]
    print(
        f'The upgrade {"gains" if gain > 0 else "loses"} {100 * abs(gain):.2f} points against training on without it '
        f'(one seed; expect a spread of a point or more). {results.minutes:.1f} minutes in all.'
    )
    print(f'Look at {args.out / "curves.png"} and {args.out / "detections.png"}.')


if __name__ == '__main__':
    command_line.run(main)
