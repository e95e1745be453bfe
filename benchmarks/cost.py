# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What an upgrade costs: parameters, FLOPs, training step and inference over the baseline's, in one run.

    python -m benchmarks.cost configs/ssd/ssd512_r50_240e_voc0712.py --targets last:3 last:6

Weights and pictures are random; the offsets of upgraded layers spread by 1.5 pixels. Networks take turns.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from benchmarks.timing import conditions, race, summary
from mmdeform_upgrade.analysis.complexity import multiplications
from mmdeform_upgrade.analysis.offsets import scatter_offsets_
from mmdeform_upgrade.config import read_config, upgrade_config
from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.preflight import build_network

SIGMA = 1.5  # of the offsets, in pixels
BASELINE = 'baseline'


@dataclass(frozen=True)
class Load:
    """What the networks are measured on.

    Attributes:
        size: pixels of a side.
        batch_size: N of training and inference; FLOPs are those of one picture.
        repetitions: timed calls of each.
        device: ``'cpu'`` or ``'cuda'``.
    """

    size: int = 512
    batch_size: int = 2
    repetitions: int = 10
    device: str = 'cpu'


def measure_costs(networks: Mapping[str, nn.Module], load: Load) -> dict[str, dict[str, Any]]:
    """Measure mmdet's detectors or mmseg's segmentors against each other, taking turns.

    Args:
        networks: name to network, ``'baseline'`` among them; their offsets are set to random ones, which spread by
            1.5 pixels.
        load: what they are measured on.

    Returns:
        For each name ``parameters``, ``flops`` (multiplications with their addition, backbone and neck, one picture),
        ``train_ms`` (a whole step through MMEngine) and ``inference_ms`` (backbone and neck), the times as summaries.
    """
    for network in networks.values():
        _spread_offsets(network.to(load.device).train(), load)
    train, infer = (
        race({name: work(network, load) for name, network in networks.items()}, load.repetitions, load.device)
        for work in (_train_step, _inference)
    )
    return {
        name: {
            'parameters': sum(p.numel() for p in network.parameters()),
            'flops': _flops(network, load),
            'train_ms': summary(train[name]),
            'inference_ms': summary(infer[name]),
        }
        for name, network in networks.items()
    }


def cost_table(costs: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: each network, and in brackets what it is of the baseline (times: fastest, then median)."""
    lines = [
        '| network | parameters, million | GFLOPs, one picture | training step, ms | inference, ms |',
        '|---|---|---|---|---|',
    ]
    base = costs[BASELINE]
    for name, row in costs.items():
        cells = [
            f'{row[key] / scale:.2f} ({row[key] / base[key]:.3f})'
            for key, scale in (('parameters', 1e6), ('flops', 1e9))
        ]
        for kind in ('train_ms', 'inference_ms'):
            ratios = ', '.join(f'{row[kind][part] / base[kind][part]:.3f}' for part in ('fastest', 'median'))
            cells.append(f'{row[kind]["fastest"]:.0f} ({ratios})')
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def random_batch(model: nn.Module, size: int, batch_size: int, device: str = 'cpu') -> dict[str, Any]:
    """What a data loader would give to ``model.train_step``: square pictures with random labels.

    Args:
        model: one of mmdet's detectors, or of mmseg's segmentors.
        size: pixels of a side.
        batch_size: N.
        device: where the labels are put.

    Raises:
        ConfigError: the model is neither.
    """
    family = {c.__module__.split('.')[0] for c in type(model).__mro__}
    names = ('bbox_head', 'decode_head', 'roi_head')
    head = next((getattr(model, name) for name in names if hasattr(model, name)), None)
    inner = getattr(head, 'bbox_head', None)
    inner = inner[0] if isinstance(inner, nn.ModuleList) else inner  # of a cascade
    classes = getattr(head, 'num_classes', None) or getattr(inner, 'num_classes', None)
    shape = (3, size, size)
    if 'mmdet' in family and classes:
        from mmdet.testing import demo_mm_inputs

        masks = bool(getattr(model, 'with_mask', False))
        return demo_mm_inputs(
            batch_size, [shape] * batch_size, [8] * batch_size, classes, with_mask=masks, device=device
        )
    if 'mmseg' in family and classes:
        pictures = [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in range(batch_size)]
        return {'inputs': pictures, 'data_samples': [_random_mask(classes, size, device) for _ in pictures]}
    raise ConfigError(
        f'{type(model).__name__} is no detector of mmdet and no segmentor of mmseg with a number of '
        'classes: random labels cannot be made for it'
    )


def _random_mask(classes: int, size: int, device: str) -> Any:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo={'img_shape': (size, size), 'ori_shape': (size, size)})
    sample.gt_sem_seg = PixelData(data=torch.randint(0, classes, (1, size, size), device=device))
    return sample


def _spread_offsets(network: Any, load: Load) -> None:
    data = network.data_preprocessor(random_batch(network, load.size, load.batch_size, load.device), training=True)
    scatter_offsets_(network, SIGMA, lambda: network(**data, mode='loss'))


def _train_step(network: Any, load: Load) -> Any:
    batch = random_batch(network, load.size, load.batch_size, load.device)
    # The rate is zero, so that all repetitions see the same offsets; the work is the same.
    wrapper = OptimWrapper(torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9))
    return lambda: network.train().train_step(batch, wrapper)


def _inference(network: Any, load: Load) -> Any:
    images = torch.randn(load.batch_size, 3, load.size, load.size, device=load.device)

    def infer() -> None:
        network.eval()
        with torch.no_grad():
            network.extract_feat(images)

    return infer


def _flops(network: Any, load: Load) -> int:
    network.eval()
    with torch.no_grad(), multiplications(network) as counts:
        network.extract_feat(torch.zeros(1, 3, load.size, load.size, device=load.device))
    return int(sum(counts.values()))


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
    settings = {name: getattr(args, name) for name in ('config', 'part', 'size', 'batch_size', 'repetitions')}
    found = {**settings, **conditions(args.device), 'offset_sigma': SIGMA}
    costs = measure_costs(dict(networks(args)), Load(args.size, args.batch_size, args.repetitions, args.device))
    text = (
        f'{args.config}, {args.batch_size}x{args.size}x{args.size}, {found["hardware"]}, {found["threads"]} threads, '
        f'torch {found["versions"]["torch"]}; {args.repetitions} repetitions in turns, offsets sigma {SIGMA} px; '
        f'load average before {found["load_average_before"][0]:.1f}. In brackets: over the baseline (times: fastest, '
        'median). FLOPs and inference are those of backbone and neck.\n\n' + cost_table(costs)
    )
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        report = {'conditions': found, 'results': costs}
        args.out.with_suffix('.json').write_text(json.dumps(report, indent=1) + '\n')
        args.out.with_suffix('.md').write_text(text)


if __name__ == '__main__':
    command_line.run(main)
