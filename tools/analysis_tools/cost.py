# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What upgrades of a network cost: parameters, FLOPs, training step and inference over the baseline's.

    python tools/analysis_tools/cost.py configs/ssd/ssd512_r50_240e_voc0712.py --targets last:3 last:6

Weights and pictures are random; the offsets of upgraded layers spread by 1.5 pixels. Networks take turns.
"""

import argparse
import json
import os
from pathlib import Path

import torch

from mmdeform_upgrade.analysis.cost import BASELINE, SIGMA, Load, cost_table, measure_costs
from mmdeform_upgrade.config import read_config, upgrade_config
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.preflight import build_network


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help="the baseline's config")
    parser.add_argument('--targets', nargs='+', default=['last:3', 'last:6'], help='upgrades to compare')
    parser.add_argument('--part', default='backbone', help='component of the model to upgrade')
    parser.add_argument('--size', type=int, default=512, help='pixels of a side')
    parser.add_argument('--batch-size', type=int, default=2)
    parser.add_argument('--repetitions', type=int, default=10)
    parser.add_argument('--threads', type=int, default=2, help='CPU threads')
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--out', type=Path, help='where to write OUT.json and OUT.md')
    return parser.parse_args(argv)


def networks(args):
    cfg = read_config(args.config)
    configs = {BASELINE: cfg}
    for targets in args.targets:
        configs[targets] = upgrade_config(cfg, load_from='unused.pth', targets=targets, part=args.part)
    for name, config in configs.items():
        torch.manual_seed(0)
        yield name, build_network(config)


def main(argv=None):
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    conditions = {
        name: getattr(args, name) for name in ('config', 'part', 'size', 'batch_size', 'repetitions', 'device')
    }
    conditions.update(threads=torch.get_num_threads(), torch=torch.__version__, load_average=os.getloadavg()[0])
    costs = measure_costs(dict(networks(args)), Load(args.size, args.batch_size, args.repetitions, args.device))
    text = (
        ', '.join(f'{name} {value}' for name, value in conditions.items())
        + f'. Networks take turns, offsets spread by {SIGMA} px. In brackets: over the baseline (times: fastest, median). '
        'FLOPs and inference are those of backbone and neck.\n\n' + cost_table(costs)
    )
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        report = {'conditions': {**conditions, 'offset_sigma': SIGMA}, 'results': costs}
        args.out.with_suffix('.json').write_text(json.dumps(report, indent=1) + '\n')
        args.out.with_suffix('.md').write_text(text)


if __name__ == '__main__':
    command_line.run(main)
