# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Publish a checkpoint: weights and provenance alone, named after its config and the hash of the file."""

import argparse
import os

from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.release import publish


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='checkpoint of a run')
    parser.add_argument('out_dir', help='folder for the release')
    parser.add_argument('--config', help='the config it was trained with; without it, no stock config is written')
    parser.add_argument('--ema', action='store_true', help='publish the averaged weights (EMA)')
    parser.add_argument('--date', help='YYYYMMDD (default: today)')
    parser.add_argument('--force', action='store_true', help='overwrite files of the same names')
    args = parser.parse_args(argv)
    if os.path.exists(args.out_dir) and not os.path.isdir(args.out_dir):
        raise ConfigError(f'{args.out_dir!r} is a file; name a folder')
    for line in publish(args.src, args.out_dir, config=args.config, ema=args.ema, force=args.force, date=args.date):
        print(line if line.startswith('no stock config') else f'written: {line} ({os.path.getsize(line)} bytes)')


if __name__ == '__main__':
    command_line.run(main)
