# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Does the signal in the offsets' gradient, measured before anything is trained, foretell what the upgrade gains?

    python -m benchmarks.camera.foretell --lab work_dirs/camera --out docs/results/camera-signal

For every setting of the lab that has a control and an upgrade from the same baselines: the signal of the targets at
baselines on the new pictures, and how large the objects are beside what the network effectively sees, beside the gain of
the upgrade over the control on the test split. ``OUT.json`` keeps the settings of other labs that it has already.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from mmdeform_upgrade import find_targets
from mmdeform_upgrade.analysis.receptive_field import reaches
from mmdeform_upgrade.analysis.signal import offset_signal
from mmdeform_upgrade.mm.signal import quartiles, regions

from .detection import detection_loss
from .runs import Lab, Run, read
from .tables import Row, by_seed, difference, load, select
from .testbeds import TESTBEDS
from .training import Recipe, segmentation_loss

SETTING = ('bed', 'network', 'source', 'geometry')
BATCHES, BATCH = 32, 8
LOOKED_AT = 8  # pictures
Setting = tuple[str, str, str, str]
AXES = (
    'signal before training (1 is noise), mean of the layers',
    "objects' length over what the network effectively sees",
)


def settings(rows: list[Row]) -> Iterator[tuple[Setting, list[Row], list[Row]]]:
    """(setting, control, upgraded) at the longest length that both have, of last three layers and all labels."""
    own = [r for r in select(rows, labels=None, targets='last:3') if r['steps'] and not r['label']]
    for setting in sorted({tuple(r[key] for key in SETTING) for r in own}):
        of = [r for r in own if tuple(r[key] for key in SETTING) == setting]
        arms = [[r for r in of if r['arm'] == arm] for arm in ('control', 'upgraded')]
        lengths = set.intersection(*({r['steps'] for r in arm} for arm in arms))
        if lengths:
            control, upgraded = ([r for r in arm if r['steps'] == max(lengths)] for arm in arms)
            yield setting, control, upgraded


def measure(lab: Lab, run: Run, seed: int) -> dict[str, Any]:
    """Signal of each target at a baseline on pictures drawn as its fine-tune draws them."""
    model, data = lab._network(run, seed), lab.data(run.bed, run.geometry, 'train')
    loss = detection_loss if TESTBEDS[run.bed].boxes else segmentation_loss

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        rng = torch.Generator().manual_seed(seed)
        for _ in range(BATCHES):
            rows = torch.randint(len(data.labels), (BATCH,), generator=rng)
            yield data.batch(rows.to(lab.device), (torch.rand(BATCH, generator=rng) < 0.5).to(lab.device))

    def value(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss(model, *batch)

    torch.manual_seed(seed)
    found = offset_signal(model, batches(), value)
    return {layer.layer: [round(layer.snr, 3), round(layer.z, 3), round(layer.weight_snr, 3)] for layer in found}


def effective_reach(lab: Lab, run: Run, seed: int) -> float:
    """Pixels that the last target of a baseline effectively sees, on the new camera's pictures."""
    model = lab._network(replace(run, arm='untouched'), seed).eval()
    name = find_targets(model.backbone, run.targets)[-1]
    pictures = lab.data(run.bed, run.geometry, 'train').pictures[:LOOKED_AT].float()
    return reaches({name: model.backbone.get_submodule(name)}, pictures, model)[name][1]


def extent(lab: Lab, run: Run) -> float:
    """Median of the objects' longer sides in pixels, in the new camera's training pictures."""
    labels = lab.data(run.bed, run.geometry, 'train').labels
    if TESTBEDS[run.bed].boxes:
        x0, y0, x1, y1, label, hardly = labels.flatten(0, 1).double().unbind(-1)
        sides = torch.maximum(x1 - x0, y1 - y0)[(label >= 0) & (hardly == 0)]
        return quartiles([(side, 1.0) for side in sides.tolist()])[1]
    unlabelled = {255} if run.bed == 'camvid' else {0, 255}  # the others' first class is the background
    return quartiles([item for picture in labels.numpy() for item in regions(picture, unlabelled)])[1]


def table(points: list[dict[str, Any]]) -> str:
    """Markdown, and how well the one orders the other."""
    lines = ['| setting | signal | z | own weights | objects over what is seen | gain over the control, test |']
    lines.append('|---|---|---|---|---|---|')
    for p in sorted(points, key=lambda p: -p['gain']):
        half = 'one baseline' if p['half'] is None else f'± {p["half"]:.1f}'
        lines.append(
            f'| {p["name"]} | {p["snr"]:.2f} | {p["z"]:.1f} | {p["weights"]:.2f} '
            f'| {p["extent"]:.0f} px / {p["sees"]:.0f} px = {p["ratio"]:.2f} | {p["gain"]:+.1f} {half} |'
        )
    if len(points) > 2:
        for name in ('snr', 'z', 'ratio'):
            rank = stats.spearmanr([p[name] for p in points], [p['gain'] for p in points])
            lines.append(f'\nRank correlation of {name} with the gain: {rank.statistic:.2f} (p = {rank.pvalue:.2g}).')
    return '\n'.join(lines) + '\n'


def draw(points: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(9, 4.4), dpi=120, sharey=True, layout='constrained')
    for axes, key, label in zip(both, ('snr', 'ratio'), AXES, strict=True):
        for i, bed in enumerate(sorted({(p['bed'], p['network']) for p in points})):
            own = [p for p in points if (p['bed'], p['network']) == bed]
            x, y, half = ([p[k] or 0.0 for p in own] for k in (key, 'gain', 'half'))
            axes.errorbar(
                x,
                y,
                yerr=half,
                fmt='o',
                capsize=3,
                color=f'C{i % 10}',
                mfc=None if i < 10 else 'w',
                label=', '.join(bed),
            )
        axes.axhline(0, color='0.7', lw=1)
        axes.set(xlabel=label, xscale='log' if key == 'snr' else 'linear')
        axes.grid(alpha=0.3)
    both[0].set_ylabel('gain over the control, test')
    figure.legend(*both[0].get_legend_handles_labels(), loc='outside lower center', ncols=3, fontsize=8)
    figure.savefig(file)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--lab', type=Path, required=True, help='folder of the runs, with the baselines')
    parser.add_argument('--data', type=Path, default=Path('data'), help='folder of the packed data sets')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--weights', type=Path, help='an ImageNet ResNet-50, for the networks that start from it')
    parser.add_argument('--baselines', type=int, default=6, help='how many of each setting are measured')
    parser.add_argument('--out', type=Path, required=True, help='writes OUT.md, OUT.png and OUT.json')
    args = parser.parse_args(argv)
    lab, file = Lab(args.lab, args.data, args.device, args.weights), args.lab / 'signals.jsonl'
    known, kept = read(file), args.out.with_suffix('.json')
    points = {p['name']: p for p in json.loads(kept.read_text(encoding='utf8'))} if kept.is_file() else {}
    for setting, control, upgraded in settings(load([lab.file])):
        bed, network, source, geometry = setting
        run, measured = Run(bed, network, 'upgraded', geometry, Recipe(0, 0), (), source=source), []
        for seed in sorted(by_seed(control))[: args.baselines]:
            key = ' '.join((*setting, str(seed)))
            if key not in known and not lab._baseline(run, seed).is_file():
                continue
            if 'sees' not in known.get(key, {}):
                layers = known[key]['layers'] if key in known else measure(lab, run, seed)
                known[key] = {'key': key, 'layers': layers, 'sees': effective_reach(lab, run, seed)}
                with file.open('a', encoding='utf8') as stream:
                    stream.write(json.dumps(known[key]) + '\n')
            measured.append(known[key])
        if measured:
            gain, half, _ = difference(by_seed(upgraded), by_seed(control))
            signals = [layer for row in measured for layer in row['layers'].values()]
            snr, z, weights = (statistics.fmean(values) for values in zip(*signals, strict=True))
            objects, sees = extent(lab, run), statistics.fmean(row['sees'] for row in measured)
            point = dict(bed=bed, network=network, name=f'{bed}, {network}, {geometry}, {upgraded[0]["steps"]} steps')
            point |= dict(snr=snr, z=z, weights=weights, gain=gain, half=None if math.isnan(half) else half)
            points[point['name']] = point | dict(extent=objects, sees=sees, ratio=objects / sees)
    found = list(points.values())
    text = table(found)
    print(text)
    args.out.with_suffix('.md').write_text(text, encoding='utf8')
    kept.write_text(json.dumps(found, indent=1) + '\n', encoding='utf8')
    draw(found, args.out.with_suffix('.png'))


if __name__ == '__main__':
    main()
