# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Try recipes of the fine-tune; choose by the validation set, report the choice on the test set.

    python benchmarks/compare/try_recipes.py CONFIG RECIPES.py --metric pascal_voc/mAP --work-dir work_dirs/four_arms

RECIPES.py says recipes = dict(NAME=dict(...), ...), the first one being what others are compared with; see
benchmarks/compare/composite_recipes.py. Baselines, and what was trained by four_arms.py in the same work directory, are
used as they are. Test scores are printed of the reference and of the best recipe only.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from benchmarks.compare import Experiment, read_result
from benchmarks.compare.flags import experiment_flags
from benchmarks.compare.recipes import chosen, held_out_table, read_recipes, validation_table, with_recipe
from benchmarks.compare.repeats import collect, flat, mean_of, repeats_section
from benchmarks.compare.report import write_report
from mmdeform_upgrade.errors import UpgradeError
from mmdeform_upgrade.mm import command_line


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, parents=[experiment_flags()], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('recipes', help='file of recipes')
    parser.add_argument(
        '--only', nargs='+', default=[], help='names of recipes to run; the others are reported if they are there'
    )
    parser.add_argument(
        '--reference',
        help='the recipe that others are compared with, run beside --only (default: the first, where it is there)',
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    asked = [name for name in (*args.only, args.reference) if name]
    recipes = read_recipes(args.recipes, asked)
    reference = args.reference or next(iter(recipes))
    plain = Experiment(
        args.config, args.work_dir, args.metric, part=args.part, options=args.options, train_command=args.train_command
    )
    tuned = {
        name: (with_recipe(plain, name, recipes[name]), 'upgraded')
        for name in sorted(recipes, key=lambda name: name != reference)
    }
    if not args.summary_only:
        wanted = {name: tuned[name] for name in (asked if args.only else tuned)}
        collect({'baseline': (plain, 'baseline'), **wanted}, args.seeds, args.repeats)
    found = collect(tuned, args.seeds, args.repeats, read_result)
    others = collect({arm: (plain, arm) for arm in ('retrained', 'control')}, args.seeds, args.repeats, read_result)
    text = report(args, found, others)
    print(text)
    if args.out:
        everything = {**found, **others}
        runs = {name: [asdict(run) for run in flat({name: seeds})] for name, seeds in everything.items()}
        write_report(args.out, text, flat(everything), {'runs': runs})


def report(args, found, others):
    if not found:
        return 'No recipe has a result yet.\n'
    if args.reference and args.reference not in found:
        raise UpgradeError(f'--reference {args.reference} has no result yet; there are those of {", ".join(found)}')
    means = {name: mean_of(seeds) for name, seeds in found.items()}
    others_means = {name: mean_of(seeds) for name, seeds in others.items()}
    return (
        f'{args.metric}, {Path(args.config).name}\n\n{validation_table(means, others_means.get("retrained", {}))}\n'
        f'The reference and, if it is another, the best of those with three seeds, on the test split:\n\n'
        f'{held_out_table({name: means[name] for name in chosen(means)}, others_means)}'
        + repeats_section(found, next(iter(found)), 'validation')
    )


if __name__ == '__main__':
    command_line.run(main)
