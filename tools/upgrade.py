# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Print the plan of an upgrade, after checking all of it, and write the short config that does it."""

import argparse
import copy
import os
from pathlib import Path

from mmdeform_upgrade.config import (
    SCHEME,
    control_changes,
    find_config,
    inheriting_text,
    is_lazy,
    read_config,
    upgrade_changes,
    upgrade_config,
)
from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.importers import OWN_NAMES
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.loading import local_path
from mmdeform_upgrade.mm.preflight import plan_upgrade
from mmdeform_upgrade.mm.signal import measure_signal
from mmdeform_upgrade.optim import OFFSET_LR
from mmdeform_upgrade.release import inspect_checkpoint


class Inspect(argparse.Action):
    """``--inspect FILE`` stands alone, like ``--help``."""

    def __call__(self, parser, namespace, value, option_string=None):
        print(command_line.printable(str(inspect_checkpoint(local_path(value)))))
        parser.exit()


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--inspect',
        action=Inspect,
        metavar='FILE',
        help='say what a checkpoint is (baseline or upgrade, layers, provenance), and do nothing else',
    )
    parser.add_argument('config', help="the baseline's config; also PACKAGE::FILE, as in 'mmseg::fcn/NAME.py'")
    parser.add_argument('checkpoint', help='the trained baseline')
    parser.add_argument(
        '--targets',
        nargs='+',
        default=['last:3'],
        help='last:N, one regular expression, or several names (default: last:3)',
    )
    parser.add_argument('--exclude', nargs='+', default=[], help='names to leave alone')
    parser.add_argument('--part', default='backbone', help='component of the model to upgrade (default: backbone)')
    parser.add_argument('--deform-groups', type=int, default=1, help='groups of channels that share offsets')
    parser.add_argument('--epoch-ratio', type=float, default=0.25, help='new training length over the old')
    parser.add_argument('--lr-mult', type=float, default=1.0, help="learning rate over the baseline's (default: 1)")
    parser.add_argument(
        '--offset-optimizer',
        choices=['same', 'adam'],
        help="the offsets' optimizer: Adam beside the baseline's, or the same one (default: adam, or what the config says)",
    )
    parser.add_argument('--offset-lr', type=float, help="learning rate of the offsets' Adam (default: 0.002)")
    parser.add_argument('--offset-lr-mult', type=float, help="with 'same': rate of the offsets over the other layers'")
    parser.add_argument(
        '--train',
        choices=['all', 'offsets'],
        default='all',
        help='what the fine-tune trains: everything, or the offsets alone for an adapter of the baseline (default: all)',
    )
    parser.add_argument(
        '--out',
        help='config to write (default: CONFIG with -upgrade before its ending; for '
        'PACKAGE::FILE, in the current folder)',
    )
    parser.add_argument('--control', help='also write the control: the baseline trained on for the same length')
    parser.add_argument(
        '--signal',
        action='store_true',
        help='measure over 32 training batches whether the offsets have something to learn (docs/targets.md)',
    )
    parser.add_argument('--dry-run', action='store_true', help='print the plan, write nothing')
    return parser.parse_args(argv)


def checked_outputs(args):
    """Where to write, refused before any work if it makes no sense."""
    config = Path(find_config(args.config))
    beside = Path() if '::' in args.config else config.parent
    outputs = [args.out or str(beside / f'{config.stem}-upgrade.py')]
    outputs += [args.control] if args.control else []
    paths = [os.path.abspath(path) for path in (config, *outputs)]
    for given, path in zip(outputs, paths[1:], strict=True):
        if not path.endswith('.py'):
            raise ConfigError(f'{given!r}: a config file ends in .py')
        if paths.count(path) > 1:
            raise ConfigError(f"{given!r} is named twice, or is the baseline's own config; name another file")
    return outputs


def write(base, out, full, changes):
    """A short config that inherits ``base``, or all of it where ``base`` is of the pure Python kind."""
    text = full.pretty_text if is_lazy(base) else inheriting_text(base, out, changes)
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    Path(out).write_text(text, encoding='utf8')
    print(f'written: {out}')


def main(argv=None):
    args = parse_args(argv)
    outputs = checked_outputs(args)
    baseline = read_config(args.config)
    settings = dict(
        load_from=args.checkpoint,
        targets=args.targets[0] if len(args.targets) == 1 else args.targets,
        exclude=args.exclude,
        part=args.part,
        deform_groups=args.deform_groups,
        epoch_ratio=args.epoch_ratio,
        lr_mult=args.lr_mult,
        offset_lr_mult=args.offset_lr_mult,
        offset_optimizer=args.offset_optimizer,
        offset_lr=args.offset_lr,
        train=args.train,
    )
    upgraded = upgrade_config(baseline, **settings)
    plan = plan_upgrade(baseline, upgraded, args.checkpoint)
    print(plan)
    if args.signal:
        chosen = {name: settings[name] for name in ('targets', 'exclude', 'part')}
        print(measure_signal(baseline, args.checkpoint, **chosen, lr=args.offset_lr or OFFSET_LR))
    if args.dry_run:
        print('dry run: nothing was written')
        return
    write(args.config, outputs[0], upgraded, upgrade_changes(baseline, **settings))
    if args.control:
        # Without the hook, a foreign checkpoint is imported by the scheme alone.
        scheme = '' if plan.imported.format == OWN_NAMES else SCHEME
        changes = control_changes(
            baseline,
            load_from=scheme + args.checkpoint.removeprefix(SCHEME),
            epoch_ratio=args.epoch_ratio,
            lr_mult=args.lr_mult,
        )
        control = copy.deepcopy(baseline)
        control.merge_from_dict(changes)
        write(args.config, args.control, control, changes)
    print(f'next: python tools/train.py {outputs[0]}')


if __name__ == '__main__':
    command_line.run(main)
