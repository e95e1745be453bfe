# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Sorts the photographic cut-outs of installed Debian packages into class folders."""

import argparse
from typing import List, Optional

from benchmarks.datasets import collect_debian_cutouts
from mmdeform_upgrade.mm import command_line


def parse_args(argv: Optional[List[str]]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The stamps are GPL-2: commit neither them nor what is composed of them.',
    )
    parser.add_argument('--out', required=True, help='folder to write')
    parser.add_argument('--stamps', default='/usr/share/tuxpaint/stamps')
    parser.add_argument('--share', default='/usr/share', help='where the wallpapers lie')
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> None:
    """Collects and prints the counts."""
    args = parse_args(argv)
    found = collect_debian_cutouts(args.out, args.stamps, args.share)
    for name, count in found['counts'].items():
        print(f'{name}: {count}')
    print(f'{len(found["dropped"])} stamps dropped, see {args.out}/sources.json')


if __name__ == '__main__':
    command_line.run(main)
