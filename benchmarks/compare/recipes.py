# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Recipes of a fine-tune against each other: chosen by the validation set, told on the test set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, List, Mapping, Optional, Sequence

from mmdeform_upgrade.errors import UpgradeError

from .repeats import last_validation
from .report import to_percent
from .runs import Experiment, Result
from .statistics import Spread, paired, reached

# What a recipe may say: settings of an Experiment.
KEYS = (
    'targets',
    'exclude',
    'deform_groups',
    'epoch_ratio',
    'lr_mult',
    'offset_lr_mult',
    'tune_options',
    'tune_changes',
    'tune_hooks',
)

Found = Mapping[str, Mapping[int, Result]]  # recipe, seed


def read_recipes(path: str, only: Sequence[str] = ()) -> Dict[str, Dict[str, Any]]:
    """The ``recipes`` of a Python file: settings of an :class:`Experiment` by name, the first one the reference.

    Raises:
        UpgradeError: there are none, one says something unknown, or there is none of a name in ``only``.
    """
    from mmengine.config import Config

    recipes = Config.fromfile(path).to_dict().get('recipes')
    if not isinstance(recipes, dict) or not recipes:
        raise UpgradeError(
            f'{path}: expected recipes = dict(NAME=dict(...), ...) with settings out of ' + ', '.join(KEYS)
        )
    for name, settings in recipes.items():
        if unknown := sorted(set(settings) - set(KEYS)):
            raise UpgradeError(f'{path}: recipe {name!r} has {", ".join(unknown)}; known are {", ".join(KEYS)}')
    if missing := sorted(set(only) - set(recipes)):
        raise UpgradeError(f'{path} has no recipe {", ".join(missing)}; it has {", ".join(recipes)}')
    return recipes


def with_recipe(experiment: Experiment, name: str, settings: Mapping[str, Any]) -> Experiment:
    """An experiment whose fine-tunes follow a recipe; one that changes nothing is the experiment itself."""
    return replace(experiment, variant=name, **settings) if settings else experiment


def validation_table(found: Found, retrained: Mapping[int, Result]) -> str:
    """Markdown: every recipe's last validation score, best first; what a recipe is chosen by.

    Args:
        found: fine-tunes by recipe and seed; the first recipe is the one that others are compared with.
        retrained: the deformable networks trained from scratch, by seed.
    """
    factor = to_percent(run for runs in found.values() for run in runs.values())
    reference = next(iter(found))
    scores = {name: _last(runs) for name, runs in found.items()}
    goal = _last(retrained)
    lines = [
        f'| recipe | fine-tune | seeds | validation score | minus {reference} | minus retrained | reaches it after |',
        '|---|---|---|---|---|---|---|',
    ]
    for name in sorted(found, key=lambda name: -Spread.of(list(scores[name].values())).mean):
        cells = [
            name,
            _length(found[name]),
            ', '.join(map(str, sorted(found[name]))),
            Spread.of(list(scores[name].values())).text(factor),
            _difference(scores[name], scores[reference], factor) if name != reference else '',
            _difference(scores[name], goal, factor),
            _reached(found[name], goal),
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def held_out_table(found: Found, others: Found) -> str:
    """Markdown: test scores of the recipes that were chosen, and of what they are compared with."""
    rows = {**others, **found}
    factor = to_percent(run for runs in rows.values() for run in runs.values())
    scores = {name: {seed: run.score for seed, run in runs.items()} for name, runs in rows.items()}
    lines = [
        '| network | length | seeds | test score | ' + ' | '.join(f'minus {name}' for name in others) + ' |',
        '|---' * (4 + len(others)) + '|',
    ]
    for name, runs in rows.items():
        cells = [
            name,
            _length(runs),
            ', '.join(map(str, sorted(runs))),
            Spread.of(list(scores[name].values())).text(factor),
            *(_difference(scores[name], scores[other], factor) if other != name else '' for other in others),
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def _last(runs: Mapping[int, Result]) -> Dict[int, float]:
    return {seed: last_validation(run) for seed, run in runs.items() if run.curve}


def _length(runs: Mapping[int, Result]) -> str:
    run = next(iter(runs.values()))
    return f'{run.length} {run.unit}'


def _difference(first: Mapping[int, float], second: Mapping[int, float], factor: float) -> str:
    spread: Optional[Spread] = paired(first, second)
    return spread.text(factor, sign=True) if spread else ''


def _reached(runs: Mapping[int, Result], goal: Mapping[int, float]) -> str:
    """Each seed's first validated step at or above the retrained network's last score."""
    steps: List[str] = []
    for seed in sorted(set(runs) & set(goal)):
        step = reached(runs[seed].curve, goal[seed])
        steps.append('not' if step is None else str(step))
    return ', '.join(steps)


def chosen(found: Found, least_seeds: int = 3) -> Sequence[str]:
    """The recipe with the best mean validation score among those with enough seeds, and the reference."""
    reference = next(iter(found))
    means = {
        name: Spread.of(list(_last(runs).values())).mean
        for name, runs in found.items()
        if len(_last(runs)) >= least_seeds
    }
    best = max(means, key=lambda name: means[name], default=reference)
    return [reference] if best == reference else [reference, best]
