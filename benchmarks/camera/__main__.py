# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Run the comparison after a change of camera; what is done is not repeated.

python -m benchmarks.camera shapes --out work_dirs/camera
python -m benchmarks.camera camvid horses msrc bccd chess --data FOLDER --out work_dirs/camera

Detectors train one seed after the other. For a process each, --seeds 100 101 chooses the rates, then --seeds 0, ...
"""

import argparse
import time
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from . import plans, testbeds
from .networks import pretrained
from .runs import SELECTION, Lab, Run


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('beds', nargs='+', choices=sorted(testbeds.TESTBEDS))
    parser.add_argument('--parts', nargs='+', choices=plans.PARTS, default=['camera'], help='default: %(default)s')
    parser.add_argument('--networks', nargs='+', help="default: each test bed's first")
    parser.add_argument('--seeds', nargs='+', type=int, default=[*SELECTION, *plans.SEEDS], help='default: %(default)s')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/camera'), help='folder of results and baselines')
    parser.add_argument('--data', type=Path, default=Path('data'), help='folder of the packed data sets')
    parser.add_argument('--weights', type=Path, help='an ImageNet ResNet-50, caffe style')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--workers', type=int, default=2, help='processes that prepare pictures')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='start nothing after so long')
    parser.add_argument('--bfloat16', action='store_true', help='mixed precision, half the time on a CPU')
    parser.add_argument('--steps', type=float, default=1.0, help='part of the steps and scenes, for a trial')
    args = parser.parse_args(argv)
    pairs = [(bed, network) for bed in args.beds for network in args.networks or plans.NETWORKS[bed][:1]]
    if args.weights is None and any(pretrained(network) for _, network in pairs):
        parser.error("a ResNet-50 starts from ImageNet: --weights names its file, mmdet's detectron2/resnet50_caffe")
    deadline = time.monotonic() + 60 * args.minutes
    lab = Lab(args.out, args.data, args.device, args.weights, deadline, args.steps, args.workers, args.bfloat16)
    for bed, network in pairs:
        lab.run(of_seeds(plans.selection(bed, network), args.seeds))
        recipes = plans.chosen(lab.rows, bed, network)
        if {'same', 'ceiling', 'trained-out'} & set(args.parts):
            lab.run(of_seeds(plans.scratch_selection(bed, network), args.seeds))
        for name in args.parts:
            lab.run(of_seeds(plans.part(name, bed, network, recipes, lab.rows), args.seeds))


def of_seeds(plan: Iterable[Run], seeds: Container[int]) -> Iterator[Run]:
    for run in plan:
        yield replace(run, seeds=tuple(seed for seed in run.seeds if seed in seeds))


if __name__ == '__main__':
    main()
