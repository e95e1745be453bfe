# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Time a network's training step and its inference, plain and upgraded, taking turns.

    python tools/analysis_tools/benchmark_step.py configs/ssd/ssd512_r50_240e_voc0712.py --targets last:3 last:6

Weights and pictures are random; the offsets of upgraded layers spread by 1.5 pixels. Writes OUT.json and OUT.md.
"""
import argparse
import json
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from mmdeform_upgrade import launch
from mmdeform_upgrade.analysis.batches import random_batch, scatter_offsets_
from mmdeform_upgrade.analysis.timing import conditions, race, summary
from mmdeform_upgrade.config import upgrade_config
from mmdeform_upgrade.preflight import build_network

SIGMA = 1.5  # of the offsets, in pixels
BASELINE = 'baseline'


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
    """The baseline and its upgrades, with the offsets of a trained network."""
    cfg = Config.fromfile(args.config)
    configs = {BASELINE: cfg}
    for targets in args.targets:
        configs[targets] = upgrade_config(cfg, load_from='unused.pth', targets=targets, part=args.part)
    for name, config in configs.items():
        torch.manual_seed(0)
        network = build_network(config).to(args.device).train()
        data = network.data_preprocessor(random_batch(network, args.size, args.batch_size, args.device), training=True)
        scatter_offsets_(network, SIGMA, lambda network=network, data=data: network(**data, mode='loss'))
        yield name, network


def steps(network, args):
    """A whole training step through MMEngine, and the forward pass of backbone and neck for inference."""
    batch = random_batch(network, args.size, args.batch_size, args.device)
    # The rate is zero, so that all repetitions see the same offsets; the work is the same.
    wrapper = OptimWrapper(torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9))
    images = torch.randn(args.batch_size, 3, args.size, args.size, device=args.device)

    def train():
        network.train().train_step(batch, wrapper)

    def infer():
        network.eval()
        with torch.no_grad():
            network.extract_feat(images)

    return train, infer


def measure(args):
    built = {name: steps(network, args) for name, network in networks(args)}
    settings = {name: getattr(args, name) for name in ('config', 'size', 'batch_size', 'repetitions', 'part')}
    report = {'conditions': {**conditions(args.device), **settings, 'offset_sigma': SIGMA}, 'results': {}}
    train = race({name: pair[0] for name, pair in built.items()}, args.repetitions, args.device)
    infer = race({name: pair[1] for name, pair in built.items()}, args.repetitions, args.device)
    for name in built:
        report['results'][name] = {'train_ms': summary(train[name]), 'inference_ms': summary(infer[name])}
    return report


def table(report):
    kept, results = report['conditions'], report['results']
    lines = [f'{kept["config"]}, {kept["batch_size"]}x{kept["size"]}x{kept["size"]}, {kept["hardware"]}, '
             f'{kept["threads"]} threads, torch {kept["versions"]["torch"]}; {kept["repetitions"]} interleaved '
             f'repetitions, offsets sigma {SIGMA} px; load average before {kept["load_average_before"][0]:.1f}. '
             'Over the baseline: fastest (median).', '',
             '| network | training step ms | over the baseline | backbone and neck, inference ms | over the baseline |',
             '|---|---|---|---|---|']
    for name, row in results.items():
        cells = []
        for kind in ('train_ms', 'inference_ms'):
            base, own = results[BASELINE][kind], row[kind]
            cells += [f'{own["fastest"]:.0f} ({own["median"]:.0f})', f'{own["fastest"] / base["fastest"]:.3f} '
                      f'({own["median"] / base["median"]:.3f})']
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def main(argv=None):
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    report = measure(args)
    print(table(report))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix('.json').write_text(json.dumps(report, indent=1) + '\n')
        args.out.with_suffix('.md').write_text(table(report))


if __name__ == '__main__':
    launch.run(main)
