# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Write an upgraded network as an ONNX file whose deformable layers are the standard operator DeformConv.

python tools/deployment/export_onnx.py CONFIG CHECKPOINT OUT.onnx --size 512 512
"""

import argparse

from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.preflight import load_network
from mmdeform_upgrade.release.contents import refuse_existing
from mmdeform_upgrade.release.onnx import OPSETS, PARTS, export_onnx


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help="the upgrade's config")
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('out', help='file to write')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        default=[512, 512],
        metavar=('H', 'W'),
        help='size of the pictures (default: 512 512)',
    )
    parser.add_argument('--opset', type=int, default=OPSETS[0], help=f'one of {OPSETS}')
    parser.add_argument('--part', choices=PARTS, default='network')
    parser.add_argument('--dynamic-batch', action='store_true', help='leave the number of pictures open')
    parser.add_argument(
        '--revert-zero', action='store_true', help='write layers whose offsets are exactly zero as plain convolutions'
    )
    parser.add_argument('--force', action='store_true', help='overwrite OUT')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    refuse_existing([args.out], args.force, [args.config, args.checkpoint])
    model = load_network(args.config, args.checkpoint)
    names = export_onnx(
        model,
        args.out,
        size=tuple(args.size),
        part=args.part,
        opset=args.opset,
        dynamic_batch=args.dynamic_batch,
        revert_zero=args.revert_zero,
    )
    print(f'written: {args.out} (opset {args.opset}; outputs {", ".join(names)})')


if __name__ == '__main__':
    command_line.run(main)
