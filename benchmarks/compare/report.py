# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Finished runs as a table and as curves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple

from .runs import ARMS, FINE_TUNES, Result
from .spread import Curve, Spread, mean_curve, paired, reached

Runs = Mapping[str, Mapping[int, Result]]  # arm, seed
# Scores of mmseg's IoUMetric are percentages; mmdet's are fractions.
_PERCENT = re.compile(r'(^|[/_])(m|a)(IoU|Acc|Dice|Fscore|Precision|Recall)$')


def to_percent(results: Iterable[Result]) -> float:
    """What makes percentages of the scores of results, by the name of their metric."""
    metric = next((str(result.settings.get('metric', '')) for result in results), '')
    return 1.0 if _PERCENT.search(metric) else 100.0


def machines(results: Iterable[Result]) -> List[Dict[str, Any]]:
    """The machines that results come from, each once, however busy it was."""
    found: List[Dict[str, Any]] = []
    for result in results:
        machine = {key: value for key, value in result.machine.items() if key != 'load_average_before'}
        if machine and machine not in found:
            found.append(machine)
    return found


def write_report(out: Path, text: str, results: Iterable[Result], record: Mapping[str, Any]) -> None:
    """Write ``OUT.md``, and ``OUT.json`` with the machines of the results and what else is recorded.

    Args:
        out: path without a suffix; its folder is made.
        text: Markdown.
        results: every one that the report is about.
        record: what JSON can say.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    whole = {'machines': machines(results), **record}
    out.with_suffix('.json').write_text(json.dumps(whole, indent=1) + '\n', encoding='utf8')
    out.with_suffix('.md').write_text(text, encoding='utf8')


def group(results: Sequence[Result]) -> Dict[str, Dict[int, Result]]:
    """Results by arm, in the order of ``ARMS``, and by seed."""
    return {
        arm: {r.seed: r for r in sorted(results, key=lambda r: r.seed) if r.arm == arm}
        for arm in ARMS
        if any(r.arm == arm for r in results)
    }


def summarise(results: Sequence[Result]) -> str:
    """A Markdown table of all arms, the paired differences that matter, and when the retrained score was reached."""
    runs, factor = group(results), to_percent(results)
    lines = ['| arm | trained for | seeds | test score | training, minutes |', '|---|---|---|---|---|']
    for arm, found in runs.items():
        scores = Spread.of([result.score for result in found.values()])
        minutes = Spread.of([result.train_seconds / 60 for result in found.values()])
        seeds = ', '.join(map(str, found))
        lines.append(f'| {arm} | {_trained_for(runs, arm)} | {seeds} | {scores.text(factor)} | {minutes.mean:.1f} |')
    lines += ['', *_differences(runs, factor), *_reaching(runs, factor)]
    return '\n'.join(lines) + '\n'


def curves(results: Sequence[Result]) -> Dict[str, List[Tuple[float, float, float, float]]]:
    """Mean, lowest and highest validation score by training step; fine-tunes start where their baseline ended.

    Every arm is there, if only with no points, so that each is drawn in the same colour everywhere.
    """
    runs = group(results)
    start = _baseline_length(runs)
    drawn = {}
    for arm in ARMS:
        shift = start if arm in FINE_TUNES else 0
        drawn[arm] = [
            (step + shift, *rest)
            for step, *rest in mean_curve([_whole_curve(runs, arm, seed) for seed in runs.get(arm, {})])
        ]
    return drawn  # type: ignore[return-value]


def _whole_curve(runs: Runs, arm: str, seed: int) -> Curve:
    """A run's validation scores; those of a control begin with its baseline's last, as an upgrade's do."""
    run, baseline = runs[arm][seed], runs.get('baseline', {}).get(seed)
    if arm == 'control' and baseline is not None and baseline.curve:
        return [(0, baseline.curve[-1][1]), *run.curve]
    return run.curve


def _baseline_length(runs: Runs) -> int:
    return next((r.length for r in runs.get('baseline', {}).values()), 0)


def _trained_for(runs: Runs, arm: str) -> str:
    result = next(iter(runs[arm].values()))
    before = f'{_baseline_length(runs)} + ' if arm in FINE_TUNES else ''
    return f'{before}{result.length} {result.unit}'


def _differences(runs: Runs, factor: float) -> List[str]:
    scores = {arm: {seed: result.score for seed, result in found.items()} for arm, found in runs.items()}
    lines = []
    for first, second in (
        ('retrained', 'baseline'),
        ('upgraded', 'baseline'),
        ('upgraded', 'control'),
        ('upgraded', 'retrained'),
    ):
        spread = paired(scores.get(first, {}), scores.get(second, {}))
        if spread:
            lines.append(
                f'- {first} minus {second}, seed by seed: {spread.text(factor, sign=True)} points '
                f'({spread.count} seed{"s" * (spread.count > 1)})'
            )
    return lines


def _reaching(runs: Runs, factor: float) -> List[str]:
    lines = []
    for seed, retrained in runs.get('retrained', {}).items():
        for arm in FINE_TUNES:
            run = runs.get(arm, {}).get(seed)
            if run is None or not run.curve or not retrained.curve:
                continue
            goal = retrained.curve[-1][1]
            step = reached(_whole_curve(runs, arm, seed), goal)
            what = (
                f'reaches it after {step} of {run.length} {run.unit}{_minutes(run, step)}'
                if step is not None
                else f'does not reach it in {run.length} {run.unit}'
            )
            lines.append(
                f'- seed {seed}: the retrained network ends at {factor * goal:.2f} on the validation set '
                f'after {retrained.length} {retrained.unit}{_minutes(retrained, retrained.length)}; {arm} '
                f'{what}'
            )
    return lines


def _minutes(run: Result, step: int) -> str:
    return f' ({run.train_seconds / 60 * step / run.length:.1f} minutes)'
