# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Print the plan of an upgrade, after checking all of it, and write the short config that does it."""

import argparse
import itertools
import os
import shlex
from difflib import get_close_matches
from pathlib import Path

from mmdeform_upgrade.config import SCHEME, Length, control_changes, find_config, read_config, upgrade_changes
from mmdeform_upgrade.config.own_run import describe_outputs
from mmdeform_upgrade.config.settings import changed
from mmdeform_upgrade.config.text import config_text
from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.cost import describe_cost
from mmdeform_upgrade.mm.loading import local_path
from mmdeform_upgrade.mm.preflight import plan_upgrade
from mmdeform_upgrade.mm.signal import measure_signal
from mmdeform_upgrade.offsets.optimizer import OFFSET_LR
from mmdeform_upgrade.release import inspect_checkpoint

ZOO = Path(__file__).resolve().parents[1] / 'configs' / 'zoo'


class Inspect(argparse.Action):
    """``--inspect FILE`` needs no config, like ``--help``."""

    def __call__(self, parser, namespace, value, option_string=None):
        namespace.inspect = value
        for action in parser._actions:
            action.required = False


class List(argparse.Action):
    """``--list`` stands alone, like ``--help``."""

    def __call__(self, parser, namespace, value, option_string=None):
        for path in sorted(ZOO.glob('*.py')):
            print(f'{path.stem:<30} {path.read_text(encoding="utf8").partition(chr(10))[0].removeprefix("# ")}')
        parser.exit()


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--list', action=List, nargs=0, help='list the ready-made upgrades; give NAME alone to write one here'
    )
    parser.add_argument(
        '--inspect',
        action=Inspect,
        metavar='FILE',
        help='say what a checkpoint is (baseline or upgrade, layers, provenance), and do nothing else',
    )
    parser.add_argument('config', help="the baseline's config; also PACKAGE::FILE, as in 'mmseg::fcn/NAME.py'")
    parser.add_argument(
        'checkpoint', nargs='?', help='the trained baseline; FILE::KEY where it holds several sets of weights'
    )
    parser.add_argument('--key', help='the same as FILE::KEY')
    parser.add_argument(
        '--targets',
        nargs='+',
        default=['last:3'],
        help='last:N, one regular expression, or several names (default: last:3)',
    )
    parser.add_argument('--exclude', nargs='+', default=[], help='what to leave alone, as --targets')
    parser.add_argument('--part', default='backbone', help='component of the model to upgrade (default: backbone)')
    parser.add_argument('--deform-groups', type=int, default=1, help='groups of channels that share offsets')
    length = parser.add_mutually_exclusive_group()
    length.add_argument('--epoch-ratio', type=float, default=0.25, help='new training length over the old')
    length.add_argument('--max-iters', type=int, help='new training length in steps')
    parser.add_argument(
        '--train',
        choices=['all', 'offsets'],
        default='all',
        help='what trains: everything, or the offsets alone (default: all)',
    )
    parser.add_argument('--lr-mult', type=float, default=1.0, help="learning rate over the baseline's (default: 1)")
    parser.add_argument(
        '--offset-optimizer',
        choices=['same', 'adam'],
        help="Adam for the offsets, beside the baseline's optimizer, or that one (default: adam, or what CONFIG says)",
    )
    parser.add_argument('--offset-lr', type=float, help="learning rate of the offsets' Adam (default: 0.002)")
    parser.add_argument('--offset-lr-mult', type=float, help="with 'same': learning rate over the other layers'")
    parser.add_argument('--no-guard', action='store_true', help='leave out the hook that makes a run safe')
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
    parser.add_argument('--dry-run', action='store_true', help='print the plan and what it costs, write nothing')
    return parser.parse_args(argv)


def write_ready_made(args):
    """Copy one of the listed upgrades into the user's project."""
    name = args.config
    source = ZOO / f'{name}.py'
    if not source.is_file():
        raise ConfigError(
            f'{name!r}: give a config and its checkpoint, or the name of a ready-made upgrade (--list shows them'
            + (
                f'; did you mean {near[0]!r}?)'
                if (near := get_close_matches(name, [p.stem for p in ZOO.glob('*.py')]))
                else ')'
            )
        )
    plain = vars(parse_args([name]))
    if others := [key for key, value in vars(args).items() if key != 'out' and value != plain[key]]:
        flags = ', '.join('--' + key.replace('_', '-') for key in others)
        raise ConfigError(f'{name!r} is a ready-made upgrade, which takes no {flags}: write it, and change its lines')
    out = args.out or f'{name}.py'
    if os.path.exists(out):
        raise ConfigError(f'{out} is there already; name another file with --out')
    Path(out).write_text(source.read_text(encoding='utf8'), encoding='utf8')
    print(f'written: {out}\nnext: python tools/train.py {shlex.quote(out)}')


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
        above = next(folder for folder in Path(path).parents if folder.exists())
        if not (above.is_dir() and os.access(path if os.path.exists(path) else above, os.W_OK)):
            raise ConfigError(
                f'{given!r}: {above} is no folder that can be written to; name another with --out or --control'
            )
        if os.path.exists(path) and 'mmdeform_upgrade' not in Path(path).read_text(encoding='utf8', errors='replace'):
            raise ConfigError(f'{given!r} is there already, and this tool did not write it; name another file')
    return outputs


def run_of(out):
    """The folder of the run of a config file."""
    return os.path.join('work_dirs', Path(out).stem)


def own_folders(args, baseline, outputs):
    """The folder of the run of each config to write: train.py's choice, unless a run of the baseline may be there."""
    usual = run_of(args.config)
    loaded = os.path.dirname(args.checkpoint.removeprefix(SCHEME))
    taken = {os.path.realpath(folder) for folder in (baseline.get('work_dir') or usual, usual, loaded)}
    folders = []
    for out, suffix in zip(outputs, ('-upgrade', '-control'), strict=False):
        folder = run_of(out)
        while os.path.realpath(folder) in taken:
            folder += suffix
        taken.add(os.path.realpath(folder))
        folders.append(folder)
    return folders


def write_down(args, out, baseline, folder, changes):
    """The config file, without the folder of its run where train.py chooses that anyway."""
    if not baseline.get('work_dir') and folder == run_of(out):
        del changes['work_dir']
    text = config_text(args.config, out, baseline, changes)
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    if os.path.exists(out) and Path(out).read_text(encoding='utf8') != text:  # perhaps edited since
        kept = next(name for n in itertools.count(1) if not os.path.exists(name := f'{out}.bak{n if n > 1 else ""}'))
        os.replace(out, kept)
        print(f'kept: {kept}, what {out} was')
    Path(out).write_text(text, encoding='utf8')
    print(f'written: {out}')


def next_commands(out, cfg):
    """How to train what was written, and to score it."""
    length = Length.of(cfg)
    last = os.path.join(cfg.work_dir, f'{length.unit.rstrip("s")}_{length.total}.pth')
    out, last = map(shlex.quote, (out, last))
    return f'next: python tools/train.py {out}\n      python tools/test.py {out} {last}'


def main(argv=None):
    args = parse_args(argv)
    key = f'::{args.key}' if args.key else ''
    if args.inspect:
        print(command_line.printable(str(inspect_checkpoint(local_path(args.inspect + key)))))
        raise SystemExit(0)
    if args.checkpoint is None:
        write_ready_made(args)
        return
    args.checkpoint += key
    outputs = checked_outputs(args)
    baseline = read_config(args.config)
    folders = own_folders(args, baseline, outputs)
    # Under the guard a seed decides which batches a run sees: upgrade and control share one.
    has_seed = (baseline.get('randomness') or {}).get('seed') is not None
    shared = {'randomness': {'seed': 0}} if args.control and not has_seed else {}
    tuning = dict(epoch_ratio=args.epoch_ratio, max_iters=args.max_iters, lr_mult=args.lr_mult, guard=not args.no_guard)
    layers = dict(
        targets=command_line.one_or_several(args.targets),
        exclude=command_line.one_or_several(args.exclude),
        part=args.part,
    )
    changes = upgrade_changes(
        baseline,
        load_from=args.checkpoint,
        **layers,
        deform_groups=args.deform_groups,
        offset_optimizer=args.offset_optimizer,
        offset_lr=args.offset_lr,
        offset_lr_mult=args.offset_lr_mult,
        train=args.train,
        work_dir=folders[0],
        **tuning,
    )
    changes |= shared
    upgraded = changed(baseline, changes)
    network, plan = plan_upgrade(baseline, upgraded, args.checkpoint)
    print(f'{plan}{describe_outputs(baseline, upgraded)}')
    if args.signal:
        print(measure_signal(baseline, args.checkpoint, **layers, lr=args.offset_lr or OFFSET_LR))
    if args.dry_run:
        print(describe_cost(baseline, network))
        print(f'would write: {", ".join(outputs)}')
        print('dry run: nothing was written\n' + next_commands(outputs[0], upgraded))
        return
    write_down(args, outputs[0], baseline, folders[0], changes)
    if args.control:
        # Without the hook, whatever MMEngine itself would not read, or read in part, is read by the scheme alone.
        load_from = SCHEME + args.checkpoint.removeprefix(SCHEME)
        changes = control_changes(baseline, load_from=load_from, work_dir=folders[1], **tuning)
        changes |= shared
        write_down(args, args.control, baseline, folders[1], changes)
    print(next_commands(outputs[0], upgraded))


if __name__ == '__main__':
    command_line.run(main)
