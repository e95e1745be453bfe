# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Baseline, retrained deformable network, upgrade and control, over several seeds; a table and the curves.

    python benchmarks/compare/four_arms.py CONFIG --metric pascal_voc/mAP --seeds 0 1 2 --work-dir work_dirs/four_arms

Runs that are finished are not repeated, one that was cut is resumed. On a cluster every run is a job of its own: name
its seed and arm, and give the launcher, such as
--train-command 'tools/dist_train.sh {config} 4 --work-dir {work_dir} --resume'.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from benchmarks.compare import ARMS, Experiment, read_result, run_arm, summarise
from benchmarks.compare.flags import experiment_flags
from benchmarks.compare.repeats import collect, flat, mean_of, repeats_section
from benchmarks.compare.report import curves, write_report
from mmdeform_upgrade.mm import command_line


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, parents=[experiment_flags()], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS))
    parser.add_argument('--targets', nargs='+', default=['last:3'], help='see docs/targets.md')
    parser.add_argument('--exclude', nargs='+', default=[])
    parser.add_argument('--deform-groups', type=int, default=1)
    parser.add_argument('--epoch-ratio', type=float, default=0.25)
    parser.add_argument('--lr-mult', type=float, default=1.0, help="rate of the fine-tunes over the baseline's")
    parser.add_argument('--offset-lr-mult', type=float, help='rate of the offsets over that')
    parser.add_argument('--tune-options', nargs='+', default=[], help='settings of the fine-tunes, as key=value')
    parser.add_argument('--variant', default='', help='name of these settings, where several share one baseline')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    experiment = Experiment(
        args.config,
        args.work_dir,
        args.metric,
        args.targets[0] if len(args.targets) == 1 else args.targets,
        args.exclude,
        args.part,
        args.deform_groups,
        args.epoch_ratio,
        args.options,
        args.tune_options,
        args.variant,
        args.train_command,
        args.lr_mult,
        args.offset_lr_mult,
    )
    # An arm that starts from the baseline comes after it, whatever the order on the command line.
    found = collect(
        {arm: (experiment, arm) for arm in ARMS if arm in args.arms},
        args.seeds,
        args.repeats,
        read_result if args.summary_only else run_arm,
    )
    results = [result for seeds in found.values() for result in mean_of(seeds).values()]
    text = (
        f'{args.metric}, {Path(args.config).name}, targets {" ".join(args.targets)}\n\n{summarise(results)}'
        + repeats_section(found, 'control')
    )
    print(text)
    if args.out:
        write(args.out, text, found, results, args.metric)


def write(out, text, found, results, metric):
    from benchmarks import plots

    runs = flat(found)
    write_report(out, text, runs, {'runs': [asdict(run) for run in runs]})
    seeds = len({result.seed for result in results})
    plots.draw_bands(
        curves(results),
        out.with_suffix('.png'),
        ylabel=f'validation {metric}',
        title=f'mean and range of {seeds} seeds' if seeds > 1 else 'one seed',
        xlabel=results[0].unit,
    )


if __name__ == '__main__':
    command_line.run(main)
