# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Will deformable layers help this model on these data, and where? Measured on a trained baseline, before training.

    python tools/analysis_tools/offset_signal.py CONFIG CHECKPOINT --out signal

Prints a line for each layer that could be upgraded, and the --targets to use; docs/targets.md explains the columns.
"""

import argparse
import json
from pathlib import Path

from mmdeform_upgrade.config import read_config
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.signal import measure_signal
from mmdeform_upgrade.offsets.optimizer import OFFSET_LR
from mmdeform_upgrade.release.contents import refuse_existing


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help="the baseline's config")
    parser.add_argument('checkpoint', help='the trained baseline')
    parser.add_argument(
        '--targets', nargs='+', default=[], help='layers to measure (default: all spatial convolutions that train)'
    )
    parser.add_argument('--exclude', nargs='+', default=[], help='what to leave alone, as --targets')
    parser.add_argument('--part', default='backbone', help='component of the model (default: backbone)')
    parser.add_argument('--batches', type=int, default=32, help='training batches (default: 32)')
    parser.add_argument('--offset-lr', type=float, default=OFFSET_LR, help="rate of the offsets' Adam (default: 0.002)")
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--out', type=Path, help='where to write OUT.json and OUT.png')
    parser.add_argument('--force', action='store_true', help='overwrite these')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    json_file, picture = (Path(f'{args.out}{ending}') for ending in ('.json', '.png'))
    if args.out:
        refuse_existing([str(json_file), str(picture)], args.force, [args.config, args.checkpoint])
    report = measure_signal(
        read_config(args.config),
        args.checkpoint,
        targets=command_line.one_or_several(args.targets),
        exclude=command_line.one_or_several(args.exclude),
        part=args.part,
        batches=args.batches,
        lr=args.offset_lr,
        device=args.device,
    )
    print(report)
    if args.out:
        from mmdeform_upgrade.analysis import plots

        args.out.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(report.as_dict(), indent=1) + '\n')
        plots.draw_signal(report.layers, picture, title=f'{args.config}, {args.batches} batches')
        print(f'written: {json_file}, {picture}')


if __name__ == '__main__':
    command_line.run(main)
