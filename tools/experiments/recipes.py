# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Try recipes of the fine-tune; choose by the validation set, report the choice on the test set.

    python tools/experiments/recipes.py CONFIG RECIPES.py --metric pascal_voc/mAP --work-dir work_dirs/four_arms

RECIPES.py says recipes = dict(NAME=dict(...), ...), the first one being what others are compared with; see
tools/experiments/composite_recipes.py. Baselines, and what was trained by four_arms.py in the same work directory, are
used as they are. Test scores are printed of the reference and of the best recipe only.
"""
import argparse
import json
from dataclasses import asdict
from pathlib import Path

from mmdeform_upgrade import launch
from mmdeform_upgrade.analysis.timing import conditions
from mmdeform_upgrade.experiments import Experiment, read_result, run_arm
from mmdeform_upgrade.experiments.recipes import chosen, held_out_table, read_recipes, validation_table, with_recipe


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help="the baseline's config")
    parser.add_argument('recipes', help='file of recipes')
    parser.add_argument('--metric', required=True, help='score in the logs, such as pascal_voc/mAP or mIoU')
    parser.add_argument('--work-dir', required=True, help='folder of all runs')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--only', nargs='+', help='names of recipes to run; the others are reported if they are there')
    parser.add_argument('--part', default='backbone')
    parser.add_argument('--options', nargs='+', default=[], help='settings of every run, as key=value')
    parser.add_argument('--train-command', help='launcher of a cluster, with {config} and {work_dir}')
    parser.add_argument('--summary-only', action='store_true', help='run nothing, report what is there')
    parser.add_argument('--out', type=Path, help='also write OUT.json and OUT.md')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    recipes = read_recipes(args.recipes, args.only or [])
    plain = Experiment(args.config, args.work_dir, args.metric, part=args.part, options=args.options,
                       train_command=args.train_command)
    found = {}
    for seed in args.seeds:
        for name, settings in recipes.items():
            wanted = not args.summary_only and (not args.only or name in args.only)
            experiment = with_recipe(plain, name, settings)
            if wanted:
                run_arm(experiment, seed, 'baseline')
            result = (run_arm if wanted else read_result)(experiment, seed, 'upgraded')
            if result:
                found.setdefault(name, {})[seed] = result
    found = {name: found[name] for name in recipes if name in found}
    others = {arm: runs for arm in ('retrained', 'control')
              if (runs := {seed: run for seed in args.seeds if (run := read_result(plain, seed, arm))})}
    text = report(args, found, others)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix('.md').write_text(text, encoding='utf8')
        runs = {name: [asdict(run) for run in seeds.values()] for name, seeds in {**found, **others}.items()}
        args.out.with_suffix('.json').write_text(
            json.dumps({'conditions': conditions('cpu'), 'runs': runs}, indent=1) + '\n', encoding='utf8')


def report(args, found, others):
    if not found:
        return 'No recipe has a result yet.\n'
    best = {name: found[name] for name in chosen(found)}
    return (f'{args.metric}, {Path(args.config).name}\n\n{validation_table(found, others.get("retrained", {}))}\n'
            f'The reference and, if it is another, the best of those with three seeds, on the test split:\n\n'
            f'{held_out_table(best, others)}')


if __name__ == '__main__':
    launch.run(main)
