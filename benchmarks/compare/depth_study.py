# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""How deep to upgrade: 0, 1, 2, 3, 6 ... layers after the same short fine-tune, with what each costs.

    python benchmarks/compare/depth_study.py CONFIG --metric pascal_voc/mAP --work-dir work_dirs/depth --out OUT

Depth 0 is the control, the baseline trained on for as long. The baseline is trained first where it is not there yet.
Parameters, FLOPs, training step and inference are measured in one run, with the networks taking turns.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.compare import Experiment, read_result
from benchmarks.compare.depth import depth_table
from benchmarks.compare.flags import experiment_flags
from benchmarks.compare.repeats import collect, flat, mean_of, repeats_section
from benchmarks.compare.report import write_report
from benchmarks.cost import BASELINE, Load, measure_costs
from benchmarks.timing import conditions
from mmdeform_upgrade.config import read_config, upgrade_config
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.preflight import build_network


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, parents=[experiment_flags()], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--depths', nargs='+', type=int, default=[0, 1, 2, 3, 6])
    parser.add_argument('--epoch-ratio', type=float, default=0.25)
    parser.add_argument('--size', type=int, default=512, help='pixels of a side, for the costs')
    parser.add_argument('--repetitions', type=int, default=10)
    parser.add_argument('--threads', type=int, default=2, help='CPU threads, for the costs')
    return parser.parse_args(argv)


def at_depth(plain, depth):
    """The experiment with so many layers, where four_arms.py and the recipes of that name keep it, too."""
    targets = f'last:{depth}'
    return plain if targets == plain.targets else replace(plain, targets=targets, variant=f'last{depth}')


def train(args):
    """Results by depth and seed."""
    plain = Experiment(
        args.config,
        args.work_dir,
        args.metric,
        part=args.part,
        epoch_ratio=args.epoch_ratio,
        options=args.options,
        train_command=args.train_command,
    )
    networks = {depth: (at_depth(plain, depth), 'upgraded') if depth else (plain, 'control') for depth in args.depths}
    if args.summary_only:
        return collect(networks, args.seeds, args.repeats, read_result)
    found = collect({'baseline': (plain, 'baseline'), **networks}, args.seeds, args.repeats)
    return {depth: found[depth] for depth in networks}


def costs(args):
    cfg = read_config(args.config)
    networks = {BASELINE: build_network(cfg)}
    for depth in args.depths:
        if depth:
            networks[str(depth)] = build_network(
                upgrade_config(cfg, load_from='unused.pth', targets=f'last:{depth}', part=args.part)
            )
    return measure_costs(networks, Load(args.size, 2, args.repetitions))


def main(argv=None):
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    found = train(args)
    results = {depth: mean_of(seeds) for depth, seeds in found.items()}
    kept, measured = conditions('cpu'), costs(args)
    text = (
        f'{Path(args.config).name}, {args.metric} on the test split after a fine-tune of {args.epoch_ratio:g} of '
        f'the schedule; costs at {args.size} pixels on {kept["hardware"]}, {args.threads} threads, over the '
        f'baseline, fastest of {args.repetitions}.\n\n'
        + depth_table(results, measured)
        + repeats_section({f'depth {depth}': seeds for depth, seeds in found.items()}, 'depth 0')
    )
    print(text)
    if args.out:
        from benchmarks import plots

        runs = flat(found)
        write_report(
            args.out,
            text,
            runs,
            {'runs': [asdict(run) for run in runs], 'costs': measured, 'conditions of the costs': kept},
        )
        scores = {depth: [result.score for result in seeds.values()] for depth, seeds in results.items()}
        plots.draw_depths(
            scores,
            args.out.with_suffix('.png'),
            ylabel=f'test {args.metric}',
            title=f'{Path(args.config).stem}, {len(args.seeds)} seeds',
        )


if __name__ == '__main__':
    command_line.run(main)
