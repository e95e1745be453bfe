# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The depth study's table: what more upgraded layers bring, and what they cost."""

from __future__ import annotations

from typing import Any, Mapping

from benchmarks.cost import BASELINE

from .report import to_percent
from .runs import Result
from .spread import Spread, paired


def depth_table(results: Mapping[int, Mapping[int, Result]], costs: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: one row a depth.

    Args:
        results: depth, then seed, to the fine-tune's result; depth 0 is the control.
        costs: of :func:`measure_costs`, the depths as strings; depth 0 costs what the baseline does.
    """
    lines = [
        '| layers | test score | minus depth 0, seed by seed | parameters | FLOPs | training step | inference |',
        '|---|---|---|---|---|---|---|',
    ]
    scores = {depth: {seed: run.score for seed, run in found.items()} for depth, found in results.items()}
    factor = to_percent(run for found in results.values() for run in found.values())
    base = costs[BASELINE]
    for depth in results:
        own = costs[str(depth)] if depth else base
        spread = paired(scores[depth], scores.get(0, {})) if depth else None
        ratios = [own[key] / base[key] for key in ('parameters', 'flops')]
        ratios += [own[key]['fastest'] / base[key]['fastest'] for key in ('train_ms', 'inference_ms')]
        cells = [
            str(depth),
            Spread.of(list(scores[depth].values())).text(factor),
            spread.text(factor, sign=True) if spread else '',
            *(f'{ratio:.3f}' for ratio in ratios),
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'
