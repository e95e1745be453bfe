# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Baseline, retrained deformable network, upgrade and control, over several seeds; a table and the curves.

    python tools/experiments/four_arms.py CONFIG --metric pascal_voc/mAP --seeds 0 1 2 --work-dir work_dirs/four_arms

Runs that are finished are not repeated, one that was cut is resumed. On a cluster every run is a job of its own: name
its seed and arm, and give the launcher, such as
--train-command 'tools/dist_train.sh {config} 4 --work-dir {work_dir} --resume'.
"""
import argparse
import json
from dataclasses import asdict
from pathlib import Path

from mmdeform_upgrade import launch
from mmdeform_upgrade.analysis.timing import conditions
from mmdeform_upgrade.experiments import ARMS, Experiment, read_result, run_arm, summarise
from mmdeform_upgrade.experiments.report import curves


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help="the baseline's config")
    parser.add_argument('--metric', required=True, help='score in the logs, such as pascal_voc/mAP or mIoU')
    parser.add_argument('--work-dir', required=True, help='folder of all runs')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS))
    parser.add_argument('--targets', nargs='+', default=['last:3'], help='see docs/targets.md')
    parser.add_argument('--exclude', nargs='+', default=[])
    parser.add_argument('--part', default='backbone')
    parser.add_argument('--deform-groups', type=int, default=1)
    parser.add_argument('--epoch-ratio', type=float, default=0.25)
    parser.add_argument('--lr-mult', type=float, default=1.0, help="rate of the fine-tunes over the baseline's")
    parser.add_argument('--offset-lr-mult', type=float, help='rate of the offsets over that')
    parser.add_argument('--options', nargs='+', default=[], help='settings of every run, as key=value')
    parser.add_argument('--tune-options', nargs='+', default=[], help='settings of the fine-tunes, as key=value')
    parser.add_argument('--variant', default='', help='name of these settings, where several share one baseline')
    parser.add_argument('--train-command', help='launcher of a cluster, with {config} and {work_dir}')
    parser.add_argument('--summary-only', action='store_true', help='run nothing, report what is there')
    parser.add_argument('--out', type=Path, help='also write OUT.json, OUT.md and OUT.png')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    experiment = Experiment(
        args.config, args.work_dir, args.metric, args.targets[0] if len(args.targets) == 1 else args.targets,
        args.exclude, args.part, args.deform_groups, args.epoch_ratio, args.options, args.tune_options,
        args.variant, args.train_command, args.lr_mult, args.offset_lr_mult)
    work = read_result if args.summary_only else run_arm
    # An arm that starts from the baseline comes after it, whatever the order on the command line.
    arms = [arm for arm in ARMS if arm in args.arms]
    found = [work(experiment, seed, arm) for seed in args.seeds for arm in arms]
    results = [result for result in found if result is not None]
    text = f'{args.metric}, {Path(args.config).name}, targets {" ".join(args.targets)}\n\n{summarise(results)}'
    print(text)
    if args.out:
        write(args.out, text, results, args.metric)


def write(out, text, results, metric):
    from mmdeform_upgrade.analysis import plots
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {'conditions': conditions('cpu'), 'runs': [asdict(result) for result in results]}
    out.with_suffix('.json').write_text(json.dumps(record, indent=1) + '\n', encoding='utf8')
    out.with_suffix('.md').write_text(text, encoding='utf8')
    plots.draw_bands(curves(results), out.with_suffix('.png'), ylabel=f'validation {metric}',
                     title=f'mean and range of {len({result.seed for result in results})} seeds',
                     xlabel=results[0].unit)


if __name__ == '__main__':
    launch.run(main)
