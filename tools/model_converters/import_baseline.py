# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Import a foreign checkpoint once: write it under mmdet's or mmseg's names, and print what was done."""

import argparse
import os

from mmdeform_upgrade.checkpoint import file_sha256, import_baseline
from mmdeform_upgrade.config import read_config
from mmdeform_upgrade.errors import CheckpointError, ConfigError
from mmdeform_upgrade.importers import OWN_NAMES
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.loading import local_path, meta_of
from mmdeform_upgrade.mm.preflight import build_network
from mmdeform_upgrade.readers import read_checkpoint
from mmdeform_upgrade.release.contents import refuse_existing, write_checkpoint


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='the foreign checkpoint; docs/formats.md lists what is known')
    parser.add_argument('dst', help='checkpoint to write, ending in .pth')
    parser.add_argument('--config', help='also check that the network of this config is the one that was trained')
    parser.add_argument('--force', action='store_true', help='overwrite DST')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    args.src = local_path(args.src)
    refuse_existing([args.dst], args.force, [args.src])
    if not args.dst.endswith('.pth'):
        raise ConfigError(f'{args.dst!r}: expected a name that ends in .pth')
    network = build_network(read_config(args.config)) if args.config else None
    imported = import_baseline(args.src, network)
    if network is None and imported.format == OWN_NAMES:
        raise CheckpointError(
            f'{args.src}: its names, such as {next(iter(imported.state_dict))}, are none that need an import or that '
            'an importer knows (docs/formats.md lists them); give --config to see whether they fit its network'
        )
    state_dict = {name: value for name, value in imported.state_dict.items() if name not in imported.added}
    meta = meta_of(imported, read_checkpoint(args.src).get('meta'))
    meta['imported'].update(source=os.path.basename(args.src), source_sha256=file_sha256(args.src))
    write_checkpoint(args.dst, state_dict, meta)
    print(imported)
    print(f'written: {args.dst}')


if __name__ == '__main__':
    command_line.run(main)
