# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Composes a data set from cut-outs (DIR/class_name/*.png with alpha) and backgrounds."""

import argparse
from typing import List, Optional

from benchmarks.datasets import SceneOptions, compose_cutouts
from mmdeform_upgrade.mm import command_line


def parse_args(argv: Optional[List[str]]) -> argparse.Namespace:
    """Reads the command line."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('--cutouts', required=True, help='folder of class folders of PNGs with alpha')
    add('--backgrounds', required=True, help='folder of photos that show none of the classes')
    add('--distractors', help='folder of PNGs with alpha of other things, left unannotated')
    add('--out', required=True, help='folder to write')
    add('--train', type=int, default=1000, help='number of training pictures')
    add('--val', type=int, default=250, help='number of validation pictures')
    add('--test', type=int, default=250, help='number of test pictures')
    add('--split', type=float, nargs=3, default=(0.6, 0.2, 0.2), help='shares of the material')
    add('--seed', type=int, default=0)
    add('--size', type=int, default=320, help='side of the pictures in pixels')
    add('--objects', type=int, nargs=2, default=(1, 4), help='least and most objects')
    add('--max-distractors', type=int, default=3)
    add('--object-size', type=float, nargs=2, default=(0.2, 0.6), help='long side / picture side')
    add('--no-warp', action='store_true', help='only scale and mirror the cut-outs')
    add('--max-angle', type=float, default=30, help='bound of the rotation in degrees')
    add('--warp-strength', type=float, default=1.0, help='of bend, shear and the like, up to 1')
    add('--min-visible', type=float, default=0.3, help='least visible fraction of an object')
    add('--difficult-below', type=float, default=0.5, help='visible fraction')
    add('--jpeg-quality', type=int, nargs=2, default=(60, 95), help='least and greatest')
    add('--border', type=int, default=0, help='ignored band in the masks, in pixels')
    return parser.parse_args(argv)


def scene_options(args: argparse.Namespace) -> SceneOptions:
    """Collects the options of the pictures."""
    return SceneOptions(
        size=args.size,
        objects=tuple(args.objects),
        distractors=(0, args.max_distractors),
        object_size=tuple(args.object_size),
        warp=not args.no_warp,
        max_angle=args.max_angle,
        warp_strength=args.warp_strength,
        min_visible=args.min_visible,
        difficult_below=args.difficult_below,
        jpeg_quality=tuple(args.jpeg_quality),
        border=args.border,
    )


def main(argv: Optional[List[str]] = None) -> None:
    """Composes and prints the counts."""
    args = parse_args(argv)
    meta = compose_cutouts(
        args.out,
        args.cutouts,
        args.backgrounds,
        distractors=args.distractors,
        train=args.train,
        val=args.val,
        test=args.test,
        split=args.split,
        seed=args.seed,
        options=scene_options(args),
        progress=True,
    )
    for split, counts in meta['counts'].items():
        print(f'{split}: {counts["images"]} pictures, {counts["instances"]} objects')
    print(f'written to {args.out}')


if __name__ == '__main__':
    command_line.run(main)
