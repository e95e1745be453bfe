# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Numbers from finished runs: means, spreads, and when a score was reached."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

Curve = Sequence[Tuple[int, float]]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds (0 for one seed)."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))

    def text(self, factor: float = 100.0, sign: bool = False) -> str:
        """As ``44.59 ± 0.31``."""
        return f'{factor * self.mean:{"+" if sign else ""}.2f}' + (
            f' ± {factor * self.deviation:.2f}' if self.count > 1 else ''
        )


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Optional[Spread]:
    """Differences ``first - second`` of the seeds that both have; None if there is none."""
    seeds = sorted(set(first) & set(second))
    return Spread.of([first[seed] - second[seed] for seed in seeds]) if seeds else None


def reached(curve: Curve, score: float) -> Optional[int]:
    """The first step of a validation curve that is at least ``score``, or None."""
    return next((step for step, value in curve if value >= score), None)


def mean_curve(curves: Sequence[Curve]) -> List[Tuple[int, float, float, float]]:
    """(step, mean, lowest, highest) at the steps that all curves have."""
    tables: List[Dict[int, float]] = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    rows = [(step, [table[step] for table in tables]) for step in steps]
    return [(step, statistics.fmean(values), min(values), max(values)) for step, values in rows]
