# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Run experiments side by side on one machine, each run as soon as what it starts from is there.

    python benchmarks/compare/run_side_by_side.py benchmarks/compare/composite_plan.py --at-once 4

The plan is a Python file with plan = [dict(config=..., work_dir=..., metric=..., seeds=[...]), ...] in the order of
importance; each entry takes arms=[...] and every setting of an Experiment, recipes='FILE.py' stands for the upgrades of
all its recipes, and repeats=4 for four fine-tunes of each baseline. Runs are those of four_arms.py, recipes.py and
depth_study.py: let these report them.
"""

import argparse
import os
import signal
import sys
from collections import Counter

os.environ.setdefault('PYTORCH_NVML_BASED_CUDA_CHECK', '1')  # asking for a GPU must not start CUDA before the fork
os.environ.setdefault('OMP_NUM_THREADS', '1')  # runs beside each other, and threads of forked processes can be slow

from benchmarks.compare.side_by_side import read_plan, run_side_by_side
from benchmarks.compare.throughput import steps_per_second
from mmdeform_upgrade.mm import command_line


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('plan', help='file with the plan')
    parser.add_argument('--at-once', type=int, default=4, help='runs at a time')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='when to stop; what is cut can be resumed')
    parser.add_argument(
        '--try',
        nargs='+',
        type=int,
        dest='tried',
        metavar='N',
        help='leave the plan alone and tell the steps a second with N of its runs at a time',
    )
    parser.add_argument('--seconds', type=float, default=60, help='how long each N is tried')
    args = parser.parse_args(argv)
    jobs = read_plan(args.plan)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and on the way out the runs are ended
    if args.tried:
        for count, rate in steps_per_second(jobs, args.tried, args.seconds).items():
            print(f'{count} at a time: {rate:.2f} steps a second')
        return
    ended = run_side_by_side(jobs, args.at_once, args.minutes * 60)
    for place, state in ended.items():
        if state != 'done':
            print(f'{state}: {place}')
    print(', '.join(f'{count} {state}' for state, count in Counter(ended.values()).items()))
    sys.exit(0 if set(ended.values()) <= {'done'} else 1)


if __name__ == '__main__':
    command_line.run(main)
