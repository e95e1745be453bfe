# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Several fine-tunes of one baseline, each with batches of its own: how much of a difference is chance.

A fine-tune's score depends on its batches' order as a training's does on its seed, and costs a fraction of one. Means
over repeats leave the differences between arms and between baselines.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from .report import to_percent
from .runs import FINE_TUNES, Experiment, Result, run_arm
from .spread import Spread, mean_curve

Repeats = Mapping[int, Sequence[Result]]  # seed


def collect(
    networks: Mapping[Any, Tuple[Experiment, str]],
    seeds: Sequence[int],
    repeats: int,
    work: Callable[..., Optional[Result]] = run_arm,
) -> Dict[Any, Dict[int, List[Result]]]:
    """Train networks, baseline by baseline, or gather what is there.

    Args:
        networks: name of each, to its experiment and arm.
        seeds: of the baselines.
        repeats: fine-tunes of each baseline; other arms are trained once.
        work: :func:`run_arm` or :func:`read_result`.

    Returns:
        Name, in the order of ``networks``, then seed, to results; what has none is left out.
    """
    found: Dict[Any, Dict[int, List[Result]]] = {}
    for seed in seeds:
        for name, (experiment, arm) in networks.items():
            for repeat in range(repeats if arm in FINE_TUNES else 1):
                result = work(replace(experiment, repeat=repeat), seed, arm)
                if result is not None:
                    found.setdefault(name, {}).setdefault(seed, []).append(result)
    return {name: found[name] for name in networks if name in found}


def averaged(results: Sequence[Result]) -> Result:
    """The first of several fine-tunes of one baseline, with the mean of their scores and of their curves."""
    return replace(
        results[0],
        score=statistics.fmean(result.score for result in results),
        curve=[(step, mean) for step, mean, *_ in mean_curve([result.curve for result in results])],
        train_seconds=statistics.fmean(result.train_seconds for result in results),
    )


def chance(values: Sequence[Sequence[float]]) -> Optional[float]:
    """The standard deviation within groups, pooled over them; None if no group has two values."""
    groups = [own for own in values if len(own) > 1]
    freedom = sum(len(own) - 1 for own in groups)
    if not freedom:
        return None
    return (sum(statistics.variance(own) * (len(own) - 1) for own in groups) / freedom) ** 0.5


def held_out_score(result: Result) -> float:
    """The score on the test split."""
    return result.score


def last_validation(result: Result) -> float:
    """The last score on the validation split."""
    return result.curve[-1][1]


def repeats_section(found: Mapping[Any, Repeats], reference: Any, split: str = 'test') -> str:
    """Markdown: fine-tuned networks by baseline, what chance does to one, and how they differ; empty without repeats.

    Args:
        found: name of a network (an arm, a recipe, a depth), then seed of the baseline, to its fine-tunes.
        reference: the name that others are compared with, fine-tune by fine-tune of the same batches. The figure
            behind ± is the mean's standard error, from what such pairs on the same baseline differ by.
        split: 'test', or 'validation' for the last score there.
    """
    value = last_validation if split == 'validation' else held_out_score
    deviations = {
        name: deviation
        for name, seeds in found.items()
        if (deviation := chance([[value(result) for result in results] for results in seeds.values()])) is not None
    }
    rows = {name: found[name] for name in deviations}
    if not rows:
        return ''
    factor = to_percent(flat(rows))
    all_seeds = sorted({seed for seeds in rows.values() for seed in seeds})
    counts = {len(results) for seeds in rows.values() for results in seeds.values()}
    count = ('up to ' if len(counts) > 1 else '') + str(max(counts))
    lines = [
        '',
        f'Means of {count} fine-tunes of each baseline, each with batches of its own; on the {split} split:',
        '',
        '| network | ' + ' | '.join(f'baseline {seed}' for seed in all_seeds) + ' | between fine-tunes of one '
        f'baseline | minus {reference}, pair by pair |',
        '|---' * (3 + len(all_seeds)) + '|',
    ]
    for name, seeds in rows.items():
        scores = [[value(result) for result in seeds.get(seed, ())] for seed in all_seeds]
        cells = [
            str(name),
            *(Spread.of(own).text(factor) if own else '' for own in scores),
            f'± {factor * deviations[name]:.2f}',
            _pairs(seeds, found.get(reference, {}), value, factor) if name != reference else '',
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def _pairs(first: Repeats, second: Repeats, value: Callable[[Result], float], factor: float) -> str:
    """Mean difference and its standard error over the fine-tunes of the same baseline and repeat."""
    tables = [
        {
            (result.seed, result.settings.get('repeat', 0)): value(result)
            for results in seeds.values()
            for result in results
        }
        for seeds in (first, second)
    ]
    both = [key for key in tables[0] if key in tables[1]]
    differences = {key: tables[0][key] - tables[1][key] for key in both}
    within = chance([[differences[key] for key in both if key[0] == seed] for seed in {key[0] for key in both}])
    if within is None:
        return ''
    mean = statistics.fmean(differences.values())
    return f'{factor * mean:+.2f} ± {factor * within / len(both) ** 0.5:.2f} ({len(both)})'


def mean_of(seeds: Repeats) -> Dict[int, Result]:
    """Each baseline's mean result (:func:`averaged`)."""
    return {seed: averaged(results) for seed, results in seeds.items()}


def flat(found: Mapping[Any, Repeats]) -> List[Result]:
    """Every single result, to be recorded."""
    return [result for seeds in found.values() for results in seeds.values() for result in results]
