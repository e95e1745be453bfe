# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Upgrade every config of the installed mmdet and mmseg, and compare all outputs with the original's.

    python -m benchmarks.zoo.zoo_sweep --out benchmarks/zoo/zoo.jsonl --summary benchmarks/zoo/zoo.md --jobs 2
    python benchmarks/zoo/zoo_sweep.py --sample 40 --seed 1 --out sample.jsonl

Offline, on a CPU. Stopped and started again, it goes on; delete a line of OUT, or name its reason with --redo, to have
it checked again.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.zoo import reasons
from benchmarks.zoo.summary import summary
from benchmarks.zoo.sweep import sweep
from mmdeform_upgrade.mm import command_line


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='JSON lines, one a config')
    parser.add_argument('--summary', type=Path, help='also write the counts, as Markdown')
    parser.add_argument('--only', default='*', metavar='PATTERN', help="configs with such names, as in 'mmdet/yolo*/*'")
    parser.add_argument('--jobs', type=int, default=1, help='processes, one thread each (default: 1)')
    parser.add_argument('--limit', type=float, default=900, help='seconds that a config may take (default: 900)')
    parser.add_argument('--sample', type=int, metavar='N', help='only N configs, spread over the backbone types')
    parser.add_argument('--seed', type=int, default=0, help='of the sample')
    parser.add_argument(
        '--redo',
        nargs='+',
        default=[],
        choices=list(reasons.MEANING),
        metavar='REASON',
        help='check configs with this reason again: ' + ', '.join(map(repr, reasons.MEANING)),
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    records = sweep(
        args.out, only=args.only, jobs=args.jobs, limit=args.limit, sample=args.sample, seed=args.seed, redo=args.redo
    )
    text = summary(records)
    print(text)
    if args.summary:
        args.summary.write_text(text, encoding='utf8')
    if any(record.get('reason') == reasons.OURS for record in records):
        sys.exit(1)


if __name__ == '__main__':
    command_line.run(main)
