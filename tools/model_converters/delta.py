# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A small file of what an upgrade changed against its baseline: make one, or apply it to the baseline."""

import argparse
import os

from mmdeform_upgrade.checkpoint import is_offset_key
from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.loading import local_path
from mmdeform_upgrade.readers import split_key
from mmdeform_upgrade.release import apply_delta, make_delta
from mmdeform_upgrade.release.contents import refuse_existing


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, second, ending in (('make', 'upgraded', '.safetensors'), ('apply', 'delta', '.pth')):
        command = commands.add_parser(name)
        command.add_argument('baseline', help='checkpoint of the baseline')
        command.add_argument(second)
        command.add_argument('out', help=f'file to write, ending in {ending}')
        command.add_argument('--force', action='store_true', help='overwrite OUT')
        command.set_defaults(ending=ending)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if not args.out.endswith(args.ending):
        raise ConfigError(f'{args.out!r}: expected a name that ends in {args.ending}')
    args.baseline = local_path(args.baseline)
    second = args.upgraded if args.command == 'make' else args.delta
    refuse_existing([args.out], args.force, [args.baseline, second])
    if args.command == 'make':
        changed, total = make_delta(args.baseline, args.upgraded, args.out)
        small, whole = os.path.getsize(args.out), os.path.getsize(split_key(args.upgraded)[0])
        offsets = sum(map(is_offset_key, changed))
        print(
            f'{len(changed)} of {total} tensors differ, {offsets} of them in offset branches; {small} bytes, '
            f'{100 * small / whole:.1f} % of {args.upgraded} ({whole} bytes)'
        )
    else:
        tensors = apply_delta(args.baseline, args.delta, args.out)
        print(f'{len(tensors)} tensors, {os.path.getsize(args.out)} bytes; bit for bit those of the upgrade')
    print(f'written: {args.out}')


if __name__ == '__main__':
    command_line.run(main)
