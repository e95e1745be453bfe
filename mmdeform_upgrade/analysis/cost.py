# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What an upgrade costs: parameters, FLOPs, training step and inference over the baseline's, in one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping

import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from .batches import random_batch, scatter_offsets_
from .timing import race, summary

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


def measure_costs(networks: Mapping[str, nn.Module], load: Load) -> Dict[str, Dict[str, Any]]:
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


def _spread_offsets(network: nn.Module, load: Load) -> None:
    batch = random_batch(network, load.size, load.batch_size, load.device)
    data = network.data_preprocessor(batch, training=True)  # type: ignore[operator]
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


class _Features(nn.Module):
    """Backbone and neck as a module that a tracer can call."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> List[Tensor]:
        return list(self.network.extract_feat(images))


def _flops(network: nn.Module, load: Load) -> int:
    shape = (1, 3, load.size, load.size)
    found = get_model_complexity_info(
        _Features(network).eval(), inputs=torch.zeros(shape, device=load.device), show_table=False, show_arch=False
    )
    return int(found['flops'])
