# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Draw where an upgraded network looks: sampling points through its last layers, and effective receptive fields.

    python tools/analysis_tools/show_offsets.py IMAGE CONFIG CHECKPOINT --out offsets.png

Each row is one position (a cross), by default the centres of the surest detections.
"""

import argparse
import os
from pathlib import Path

import torch

from mmdeform_upgrade.analysis.look import fields, layers_up_to, look, object_points
from mmdeform_upgrade.analysis.offsets import sampling_points, statistics
from mmdeform_upgrade.analysis.receptive_field import width
from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.preflight import load_network
from mmdeform_upgrade.release.contents import refuse_existing


def point(text):
    y, x = map(float, text.split(','))
    return y, x


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', help='picture')
    parser.add_argument('config', help="the upgrade's config")
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('--out', type=Path, default=Path('offsets.png'))
    parser.add_argument(
        '--points',
        nargs='+',
        type=point,
        metavar='Y,X',
        help='positions, in pixels of the picture as the network sees it',
    )
    parser.add_argument('--count', type=int, default=3, help='detections to show, where no points are given')
    parser.add_argument(
        '--layer',
        metavar='NAME',
        help='the layer whose output positions are followed back, and its fields: its name or the end of it (default: '
        'the last upgraded one)',
    )
    parser.add_argument('--depth', type=int, default=3, help='how many upgraded layers to go back through')
    parser.add_argument('--group', type=int, default=0, help='deform group')
    parser.add_argument('--device', default='cpu')
    return parser.parse_args(argv)


def rows(model, seen, args):
    size = seen.picture.shape[:2]
    records = layers_up_to(model, seen, args.layer)
    for at in args.points or object_points(seen, args.count):
        depths = range(1, min(args.depth, len(records)) + 1)
        points = {
            f'{depth} layer{"s" * (depth > 1)}': sampling_points(records, at, size, depth, args.group)
            for depth in depths
        }
        before, after = fields(model, seen, at, records[-1].layer)
        widths = [width(torch.from_numpy(field)) for field in (before, after)]
        yield at, points, {f'offsets at zero ({widths[0]:.0f} px)': before, f'as learned ({widths[1]:.0f} px)': after}


def main(argv=None):
    args = parse_args(argv)
    if not os.path.isfile(args.image):
        raise ConfigError(f'there is no file {args.image!r}')
    if args.out.suffix.lower() != '.png':
        raise ConfigError(f'--out {str(args.out)!r}: expected a name that ends in .png')
    refuse_existing([str(args.out)], True, [args.image, args.config, args.checkpoint])
    model = load_network(args.config, args.checkpoint, args.device)
    seen = look(model, args.image)
    height, wide = seen.picture.shape[:2]
    if seen.windows > 1:
        print(f'slide inference: the last of {seen.windows} windows, {wide}x{height}, is shown')
    for y, x in args.points or ():
        if not (0 <= y < height and 0 <= x < wide):
            raise ConfigError(
                f'--points {y:g},{x:g} (Y,X) is outside of what the network sees, {height} high and {wide} wide'
            )
    for record in seen.records:
        found = statistics(record)
        print(
            f'{record.layer}: mean {found.mean:.2f} px of its input, 95 % below {found.percentile95:.2f}, largest '
            f'{found.largest:.2f}; {100 * found.outside:.1f} % of its taps are outside the map'
        )
    from mmdeform_upgrade.analysis import plots

    plots.draw_sampling(seen.picture, list(rows(model, seen, args)), args.out)
    print(f'written: {args.out}')


if __name__ == '__main__':
    command_line.run(main)
