# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What training the offsets alone costs beside training everything: memory, time of a step, and the adapter's size.

    python -m benchmarks.offsets_only configs/ssd/ssd512_r50_240e_voc0712.py mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py

Weights, pictures and labels are random; offsets spread by 1.5 pixels, and the optimizers are those of the configs that
``tools/upgrade.py`` writes. Both networks take turns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cost import SIGMA, random_batch
from benchmarks.timing import conditions, race, summary
from mmdeform_upgrade.analysis.offsets import scatter_offsets_
from mmdeform_upgrade.checkpoint import is_offset_key
from mmdeform_upgrade.config import read_config, upgrade_config
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.preflight import build_network
from mmdeform_upgrade.mm.rates import build_optimizer
from mmdeform_upgrade.release import make_delta

TRAINS = {'all': 'everything trains', 'offsets': 'offsets alone'}


@contextmanager
def saved_bytes(model: nn.Module, found: list[int]) -> Iterator[None]:
    """Append what autograd keeps of a forward pass within, in bytes; parameters and buffers are there anyway."""
    owned = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield
    found.append(sum(t.untyped_storage().nbytes() for where, t in kept.items() if where not in owned))


def measure(config: str, targets: str, size: int, batch_size: int, repetitions: int) -> dict[str, dict[str, Any]]:
    """Both ways of training an upgrade of a config, by the names of ``TRAINS``.

    Returns:
        For each ``size`` (height and width of the pictures), ``saved`` (bytes kept for the backward pass), ``state``
        (bytes of gradients and optimizer state), ``step_ms`` (a whole step through MMEngine, as a summary), and
        ``file`` (bytes of what has to be shipped).
    """
    networks, steps, results = {}, {}, {}
    for train in TRAINS:
        torch.manual_seed(0)
        cfg = upgrade_config(
            read_config(config), load_from='unused.pth', targets=targets, train=train, offset_optimizer='adam'
        )
        networks[train] = network = build_network(cfg).train()
        batch, wrapper = random_batch(network, size, batch_size), build_optimizer(network, cfg)
        data = network.data_preprocessor(batch, training=True)
        scatter_offsets_(network, SIGMA, lambda network=network, data=data: network(**data, mode='loss'))
        saved: list[int] = []
        with saved_bytes(network, saved):
            losses = network(**data, mode='loss')
        wrapper.update_params(network.parse_losses(losses)[0])
        height, width = data['inputs'].shape[-2:]  # a preprocessor may pad to a size of its own
        results[train] = {'size': (height, width), 'saved': saved[0], 'state': _state_bytes(wrapper.optimizer)}
        steps[train] = lambda network=network, batch=batch, wrapper=wrapper: network.train_step(batch, wrapper)
    times, files = race(steps, repetitions, warm_up=1), _file_bytes(networks['offsets'])
    return {train: {**results[train], 'step_ms': summary(times[train]), 'file': files[train]} for train in results}


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of the optimizer's state, and of gradients, which are as large as what trains."""
    held = [p for group in optimizer.param_groups for p in group['params'] if p.requires_grad]
    held += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in held)


def _file_bytes(network: nn.Module) -> dict[str, int]:
    """A checkpoint of all weights, and the adapter."""
    state = network.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        whole, baseline, adapter = (Path(folder) / name for name in ('w.pth', 'b.pth', 'a.safetensors'))
        torch.save({'state_dict': state}, whole)
        torch.save({'state_dict': {k: v for k, v in state.items() if not is_offset_key(k)}}, baseline)
        make_delta(str(baseline), str(whole), str(adapter))
        return {'all': whole.stat().st_size, 'offsets': adapter.stat().st_size}


def table(costs: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown: a line for each config and way of training."""
    lines = [
        '| config | trains | kept for the backward pass | gradients and optimizer state | step: fastest (median) | file |'
    ]
    lines.append('|---|---|---|---|---|---|')
    for config, rows in costs.items():
        for train, title in TRAINS.items():
            row = rows[train]
            sizes = [f'{row[key] / 2**20:.{int(row[key] < 10 * 2**20)}f} MiB' for key in ('saved', 'state', 'file')]
            step = f'{row["step_ms"]["fastest"] / 1e3:.2f} s ({row["step_ms"]["median"] / 1e3:.2f})'
            pictures = '{}x{}'.format(*row['size'])
            cells = (f'{Path(config).stem}, {pictures}', title, *sizes[:2], step, sizes[2])
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', help="the baselines' configs")
    parser.add_argument('--targets', default='last:3', help='convolutions of the backbone')
    parser.add_argument('--size', type=int, default=512, help='pixels of a side')
    parser.add_argument('--batch-size', type=int, default=2)
    parser.add_argument('--repetitions', type=int, default=5)
    parser.add_argument('--out', type=Path, help='where to write OUT.json')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = conditions('cpu')
    sizes = (args.targets, args.size, args.batch_size, args.repetitions)
    costs = {config: measure(config, *sizes) for config in args.configs}
    print(
        f'{args.targets}, batch of {args.batch_size}, float32, {found["hardware"]}, one thread, '
        f'torch {found["versions"]["torch"]}, load average before {found["load_average_before"][0]:.1f}\n\n{table(costs)}'
    )
    if args.out:
        args.out.with_suffix('.json').write_text(json.dumps({'conditions': found, 'results': costs}, indent=1) + '\n')


if __name__ == '__main__':
    command_line.run(main)
