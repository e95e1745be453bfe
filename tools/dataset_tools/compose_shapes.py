# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Composes a data set of deformable shapes: generated, seeded, no download."""

import argparse
import sys

from mmdeform_upgrade.data import compose_shapes
from mmdeform_upgrade.errors import UpgradeError


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', required=True, help='folder to write, e.g. data/shapes/VOCdevkit')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--train', type=int, default=600, help='number of training pictures')
    parser.add_argument('--val', type=int, default=150, help='number of validation pictures')
    parser.add_argument('--test', type=int, default=150, help='number of test pictures')
    parser.add_argument('--size', type=int, default=160, help='side of the pictures in pixels')
    parser.add_argument('--no-warp', action='store_true', help='leave shapes upright and unwarped')
    return parser.parse_args()


def main() -> None:
    """Composes and prints the counts."""
    args = parse_args()
    try:
        meta = compose_shapes(
            args.out,
            train=args.train,
            val=args.val,
            test=args.test,
            size=args.size,
            seed=args.seed,
            warp=not args.no_warp,
            progress=True,
        )
    except UpgradeError as error:
        sys.exit(f'error: {error}')
    for split, counts in meta['counts'].items():
        print(f'{split}: {counts["images"]} pictures, {counts["instances"]} objects')
    print(f'written to {args.out}')


if __name__ == '__main__':
    main()
