# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Composes a data set of deformable shapes: generated, seeded, no download."""

import argparse
from dataclasses import replace
from typing import List, Optional

from benchmarks.datasets import SHAPE_OPTIONS, compose_shapes
from mmdeform_upgrade.mm import command_line


def parse_args(argv: Optional[List[str]]) -> argparse.Namespace:
    """Reads the command line."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('--out', required=True, help='folder to write, e.g. data/shapes/VOCdevkit')
    add('--seed', type=int, default=0)
    add('--train', type=int, default=1500, help='number of training pictures')
    add('--val', type=int, default=300, help='number of validation pictures')
    add('--test', type=int, default=300, help='number of test pictures')
    add('--size', type=int, default=96, help='side of the pictures in pixels')
    add('--no-warp', action='store_true', help='leave shapes upright and unwarped')
    add('--max-angle', type=float, default=SHAPE_OPTIONS.max_angle, help='in degrees')
    strength = SHAPE_OPTIONS.warp_strength
    add('--warp-strength', type=float, default=strength, help='of bend, shear and the like, to 1')
    add('--border', type=int, default=0, help='ignored band in the masks, in pixels')
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> None:
    """Composes and prints the counts."""
    args = parse_args(argv)
    warps = {'max_angle': args.max_angle, 'warp_strength': args.warp_strength}
    meta = compose_shapes(
        args.out,
        train=args.train,
        val=args.val,
        test=args.test,
        size=args.size,
        seed=args.seed,
        warp=not args.no_warp,
        options=replace(SHAPE_OPTIONS, border=args.border, **warps),
        progress=True,
    )
    for split, counts in meta['counts'].items():
        print(f'{split}: {counts["images"]} pictures, {counts["instances"]} objects')
    print(f'written to {args.out}')


if __name__ == '__main__':
    command_line.run(main)
