# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Rows of finished runs, and tables of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from .plans import LONGER, TUNE_STEPS, tune_steps, usual_targets
from .runs import SELECTION, baseline_steps, read
from .testbeds import TESTBEDS

Row = dict[str, Any]
COLUMNS = (
    *('bed', 'network', 'arm', 'source', 'geometry', 'targets', 'labels', 'label', 'factor'),
    *('steps', 'lr', 'offset_lr', 'batch', 'optimizer', 'decay', 'warmup', 'seed'),
    *('val', 'test', 'ap50', 'ap75', 'offsets', 'seconds', 'loss', 'device', 'torch', 'commit', 'precision'),
)
FACTORS = (1, LONGER)
NONE: Row = dict.fromkeys(COLUMNS) | {'factor': 1}
DRAWN = ('untouched', 'control', '5x5', 'upgraded', 'offsets')
SAME_ORDER = ('scratch', 'scratch-upgraded', 'scratch-dilated', 'control', '5x5', 'offsets', 'upgraded')
ORDER = ('untouched', 'bn', 'control', 'dilated', '5x5', 'offsets', 'upgraded', 'rectified', 'computed')
NAMES = {
    'untouched': 'baseline, untouched',
    'bn': 'BatchNorm and biases only',
    'control': 'control: trained on',
    'dilated': 'plain, dilation doubled',
    '5x5': 'plain, 5x5 padded with zeros',
    'offsets': '**upgraded, offsets alone**',
    'upgraded': '**upgraded, everything**',
    'rectified': 'known map: picture rectified, untrained',
    'computed': 'known map: offsets computed, untrained',
    'scratch': 'trained there from scratch',
    'scratch-upgraded': 'deformable from scratch',
    'scratch-dilated': 'plain, dilated, from scratch',
}
SAME_NAMES = {'scratch': 'baseline', 'scratch-upgraded': 'deformable from scratch'}


def flat(row: Row) -> Row:
    """A row of a run as the report has it: settings and a detector's other test scores beside the rest, offsets' mean."""
    values = {**row, **row.get('recipe', {}), **row.get('test_more', {})}
    offsets = values.get('offsets')
    if isinstance(offsets, dict):
        values['offsets'] = round(statistics.fmean(offsets.values()), 3) if offsets else None
    return NONE | {name: values[name] for name in COLUMNS if name in values}


def load(files: Iterable[Path]) -> list[Row]:
    """Rows of ``results.jsonl`` files and of kept ones."""
    rows: list[Row] = []
    for file in files:
        if file.suffix == '.json':
            held = json.loads(file.read_text(encoding='utf8'))
            rows += [NONE | dict(zip(held['columns'], values, strict=True)) for values in held['rows']]
        else:
            rows += map(flat, read(file).values())
    return rows


def keep(rows: Sequence[Row], file: Path) -> None:
    lines = ',\n'.join(json.dumps([row[name] for name in COLUMNS]) for row in rows)
    file.write_text(f'{{"columns": {json.dumps(COLUMNS)},\n"rows": [\n{lines}\n]}}\n', encoding='utf8')


def select(rows: Iterable[Row], **values: Any) -> list[Row]:
    """Rows of the seeds that results are made of, with these values; baselines of the usual length."""
    values = {'factor': 1, **values}
    return [r for r in rows if r['seed'] not in SELECTION and all(r[key] == value for key, value in values.items())]


def of_any_baseline(rows: Iterable[Row], **values: Any) -> list[Row]:
    """The same from baselines of every length."""
    return [row for factor in FACTORS for row in select(rows, factor=factor, **values)]


def by_seed(rows: Iterable[Row], split: str = 'test') -> dict[int, float]:
    return {row['seed']: row[split] for row in rows if row[split] is not None}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student's t)."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return mean, math.nan
    return mean, float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5


def difference(first: dict[int, float], second: dict[int, float]) -> tuple[float, float, int]:
    """Mean of the paired differences, half width of its 95 % interval, and how many pairs there are."""
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return math.nan, math.nan, 0
    return (*interval([first[seed] - second[seed] for seed in seeds]), len(seeds))


def _difference_text(first: dict[int, float], second: dict[int, float]) -> str:
    mean, half, count = difference(first, second)
    return f'{mean:+.1f} ± {half:.1f}' if count > 1 else f'{mean:+.1f}' if count else ''


def score_name(bed: str) -> str:
    return 'AP' if TESTBEDS[bed].boxes else 'mIoU'


def arms_table(rows: Sequence[Row], bed: str, network: str, geometry: str, factor: int = 1) -> str:
    """Markdown: every arm of the standard length after one map, from baselines of ``factor`` times the usual length."""
    own = select(rows, bed=bed, network=network, geometry=geometry, source='identity', labels=None, factor=factor)
    steps, usual = tune_steps(bed, network), usual_targets(network)
    own = [r for r in own if r['steps'] in (0, steps) and not from_scratch(r)]
    control, score = by_seed(r for r in own if r['arm'] == 'control'), score_name(bed)
    lines = [
        f'| {bed}, {network}, {geometry}, {factor * baseline_steps(bed, network)} + {steps} steps | {score}, val | {score}, test | over the control, test '
        '| offsets, px |',
        '|---|---|---|---|---|',
    ]
    groups = [(arm, targets) for arm in ORDER for targets in sorted({r['targets'] for r in own if r['arm'] == arm})]
    for arm, targets in groups:
        group = [r for r in own if r['arm'] == arm and r['targets'] == targets]
        test, name = by_seed(group), NAMES[arm] + (f', {targets}' if targets != usual and arm != 'untouched' else '')
        over = '' if arm in ('control', 'untouched') else _difference_text(test, control)
        offsets = [r['offsets'] for r in group if r['offsets']]
        lines.append(
            f'| {name} | {statistics.fmean(r["val"] for r in group):.1f} | {statistics.fmean(test.values()):.1f} | '
            f'{over} | {f"{statistics.fmean(offsets):.2f}" if offsets else ""} |'
        )
    seeds = len({r['seed'] for r in own})
    return '\n'.join(lines) + f'\n\n{seeds} baselines; ± is the 95 % interval of the paired difference.\n'


def series(rows: Sequence[Row], axis: str, arm: str, split: str = 'test') -> list[tuple[float, float, float]]:
    """(value on the axis, mean, half interval) of an arm."""
    values = sorted({r[axis] for r in rows if r['arm'] == arm})
    return [
        (x, *interval(list(by_seed([r for r in rows if r['arm'] == arm and r[axis] == x], split).values())))
        for x in values
    ]


def lengths_table(rows: Sequence[Row], bed: str, network: str, geometry: str, source: str = 'identity') -> str:
    """Markdown: test scores by length."""
    own = select(rows, bed=bed, network=network, geometry=geometry, source=source, labels=None)
    own = [r for r in own if r['steps'] and not from_scratch(r)]
    return axis_table(own, 'steps', f'{bed}, {geometry}: steps')


def labels_table(rows: Sequence[Row], bed: str, network: str, geometry: str) -> str:
    """Markdown: test scores by the number of labelled pictures."""
    own = [r for r in select(rows, bed=bed, network=network, geometry=geometry, source='identity') if r['labels']]
    return axis_table(own, 'labels', f'{bed}, {geometry}: labelled pictures')


def doses(rows: Sequence[Row], kind: str) -> list[Row]:
    """Rows of the generated shapes by the strength of a map; a map of strength 1 is the same for every kind."""
    own = []
    for row in select(rows, bed='shapes', source='identity', labels=None):
        name, _, values = row['geometry'].partition(':')
        dose = float(values.rpartition('=')[2].strip('()').partition(',')[0]) if values else 0.0
        if values and (name == kind or dose == 1.0):
            own.append({**row, 'dose': dose})
    return own


def reaches(rows: Sequence[Row]) -> list[Row]:
    """Rows of the generated shapes through the fisheye by the number of the network's stages."""
    own = select(rows, bed='shapes', source='identity', geometry='fisheye', labels=None, targets='last:3')
    own = [row for row in own if row['steps'] in (0, TUNE_STEPS['shapes']) and row['arm'] in DRAWN]
    return [{**row, 'stages': int(row['network'][-1])} for row in own]


def same_table(rows: Sequence[Row], bed: str, network: str) -> str:
    """Markdown: trained on its own pictures, baselines, fine-tunes of them, and networks from scratch."""
    own = of_any_baseline(rows, bed=bed, network=network, geometry='identity')
    groups: dict[tuple, list[Row]] = {}
    for row in own:
        arm = SAME_ORDER.index(row['arm'])
        key = (_baseline_steps(row), not from_scratch(row), row['steps'], arm, row['label'] or '', row['offset_lr'])
        groups.setdefault(key, []).append(row)
    lines = [
        f'| {bed}, {network}, own pictures | steps | mIoU, val | mIoU, test | over the control, test '
        '| over the deformable from scratch, test |',
        '|---|---|---|---|---|---|',
    ]
    for key in sorted(groups):
        group, test = groups[key], by_seed(groups[key])
        alike = [r for r in own if _baseline_steps(r) == key[0]]
        control = by_seed(r for r in alike if r['arm'] == 'control' and r['steps'] == key[2])
        deformable = _best(g for k, g in groups.items() if k[0] == key[0] and g[0]['arm'] == 'scratch-upgraded')
        name = SAME_NAMES.get(group[0]['arm'], NAMES[group[0]['arm']]) + (f' ({key[4]})' if key[4] else '')
        over = '' if group[0]['arm'] == 'control' or from_scratch(group[0]) else _difference_text(test, control)
        lines.append(
            f'| {name} | {"" if from_scratch(group[0]) else f"{key[0]} + "}{key[2]} | '
            f'{statistics.fmean(r["val"] for r in group):.1f} | {statistics.fmean(test.values()):.1f} ({len(group)}) | {over} | '
            f'{_difference_text(test, deformable) if test != deformable else ""} |'
        )
    return '\n'.join(lines) + '\n'


def _baseline_steps(row: Row) -> int:
    """Of its baseline, or of a network from scratch."""
    return row['steps'] if from_scratch(row) else row['factor'] * baseline_steps(row['bed'], row['network'])


def _best(groups: Iterable[Sequence[Row]]) -> dict[int, float]:
    """Test scores of the group with the best mean."""
    return max(map(by_seed, groups), key=lambda scores: statistics.fmean(scores.values()), default={})


def from_scratch(row: Row) -> bool:
    return row['arm'].startswith('scratch')


def axis_table(rows: Sequence[Row], axis: str, title: str) -> str:
    """Markdown: mean test scores of every arm over the values of an axis, with the number of baselines."""
    values = sorted({r[axis] for r in rows})
    arms = [arm for arm in ORDER if any(r['arm'] == arm for r in rows)]
    if not values:
        return ''
    lines = [f'| {title} | ' + ' | '.join(f'{v:g}' for v in values) + ' |', '|---' * (len(values) + 1) + '|']
    for arm in arms:
        cells = []
        for value in values:
            scores = list(by_seed(r for r in rows if r['arm'] == arm and r[axis] == value).values())
            cells.append(f'{statistics.fmean(scores):.1f} ({len(scores)})' if scores else '')
        lines.append(f'| {NAMES[arm]} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n\nMean test scores (baselines).\n'
