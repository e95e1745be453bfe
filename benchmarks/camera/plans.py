# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What is run: first rates by validation on seeds of their own, then every arm on six baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from . import networks, runs, testbeds
from .runs import SELECTION, Run
from .training import Recipe

SEEDS = (0, 1, 2, 3, 4, 5)
TUNED = ('control', 'bn', 'dilated', '5x5', 'upgraded', 'offsets')
BOXES_TUNED = ('control', '5x5', 'upgraded', 'offsets')
REAL_MAPS = ('anisotropic', 'fisheye')
# Objects stay within the picture.
GENTLE = 'anisotropic:small=(0.55,0.8),large=(1.0,1.5)'
CELLS = 'anisotropic:small=(0.7,1.0),large=(1.2,1.8)'
MAPS = {
    'shapes': ('fisheye', 'anisotropic', 'mixed', 'perspective', 'zoom', 'aspect'),
    'shape-boxes': (GENTLE, 'fisheye:middle=1.5,rim=0.6'),
    'camvid': (*REAL_MAPS, *testbeds.CAMERAS),
    'bccd': (CELLS, 'fisheye:middle=2.0,rim=0.8'),
    'chess': ('zoom', 'mixed:low=1.2,high=2.4'),
}
# Networks of each test bed: the first is the one of the main table.
NETWORKS = {
    'shapes': ('r18w32s2', 'r18w32s1', 'r18w32s3', 'r18w32s4'),
    'shape-boxes': ('fcos-r18w32s2', 'ssd-r18w32s4', 'retina-r18w32s4'),
    'camvid': ('r18w32s2', 'r18w32s3', 'r50s2'),
    'horses': ('r18w32s3',),
    'msrc': ('r50s2', 'r50s3os16', 'r50os16'),
    'bccd': ('fcos-r18w32s2', 'ssd-r18w32s4', 'retina-r18w32s4', 'ssd-r50s4', 'fcos-r50s2'),
    'chess': ('fcos-r18w32s2',),
}
# Rates of baselines; a pretrained network's by validation with one of its selection's seeds (os16: those of r50s2).
SCRATCH_LR = 2e-3
PRETRAINED_LRS = {'r50s2': 1e-3, 'r50s3os16': 1e-3, 'r50os16': 1e-3, 'ssd-r50s4': 2e-4, 'fcos-r50s2': 1e-3}
# Layers that the arms change, where these are not the last three: mmdet's own choice for ResNet-50, of c3 to c5.
TARGETS = {'ssd-r50s4': 'last:13'}
TUNE_STEPS = {'shapes': 500, 'shape-boxes': 300, 'camvid': 375, 'horses': 250, 'msrc': 375, 'bccd': 250, 'chess': 250}
SELECTION_MAP = dict.fromkeys(NETWORKS, 'anisotropic') | {'shapes': 'fisheye', 'shape-boxes': GENTLE}
SELECTION_MAP |= {'bccd': CELLS, 'chess': 'zoom'}
LONGER = 4
# Rates that the selection chooses from, of the network and of the offsets, and of the offsets alone.
RATES = dict.fromkeys(NETWORKS, ((5e-4, 1e-3, 2e-3, 4e-3), (1e-3, 2e-3, 5e-3), (1e-3, 2e-3, 5e-3, 1e-2)))
RATES |= dict.fromkeys(('shape-boxes', 'bccd', 'chess'), ((1e-3, 3e-3), (1e-3, 2e-3), (1e-3, 2e-3)))
PRETRAINED_RATES = ((1e-4, 3e-4, 1e-3), (1e-3, 2e-3), (1e-3, 2e-3))


def tune_steps(bed: str, network: str) -> int:
    """Of a fine-tune; half as many for a pretrained network, which is a quarter of its baseline's."""
    return TUNE_STEPS[bed] // (2 if networks.pretrained(network) else 1)


def usual_targets(network: str) -> str:
    return TARGETS.get(network, 'last:3')


def tuned(bed: str) -> tuple[str, ...]:
    """The arms of a test bed that train."""
    return BOXES_TUNED if testbeds.TESTBEDS[bed].boxes else TUNED


def strengths() -> list[str]:
    """Maps from none to strong, the coarse steps first: stretched in a direction of each picture's own, and zoomed."""
    stretches = {m: f'anisotropic:small=(1.0,1.0),large=({m},{m})' for m in (1.0, 3.0, 2.0, 1.5, 2.5)}
    zooms = {m: f'zoom:magnification={m}' for m in (3.0, 2.0, 1.5, 2.5)}
    coarse = [stretches[m] for m in (1.0, 3.0, 2.0)] + [zooms[m] for m in (3.0, 2.0)]
    return coarse + [table[m] for m in (1.5, 2.5) for table in (stretches, zooms)]


def baseline(bed: str, network: str, seeds: tuple[int, ...], geometry: str = 'identity', factor: int = 1) -> Run:
    """``factor``: of its usual length."""
    steps = factor * runs.baseline_steps(bed, network)
    lr = PRETRAINED_LRS.get(network, SCRATCH_LR)
    return Run(bed, network, 'scratch', geometry, Recipe(steps, lr), seeds)


def tuned_with(bed: str, network: str) -> str:
    """The network whose selection gives the rates: a detector's own, or the first segmentor's that starts alike."""
    if testbeds.TESTBEDS[bed].boxes:
        return network
    return next(name for name in NETWORKS[bed] if networks.pretrained(name) == networks.pretrained(network))


def selection(bed: str, network: str) -> Iterator[Run]:
    """Rates of every arm, on two baselines that no result is made of."""
    network = tuned_with(bed, network)
    yield baseline(bed, network, SELECTION)
    rates, offset_rates, alone = PRETRAINED_RATES if networks.pretrained(network) else RATES[bed]
    for arm in tuned(bed):
        for lr in rates if arm != 'offsets' else (1e-3,):
            for offset_lr in {'upgraded': offset_rates, 'offsets': alone}.get(arm, (2e-3,)):
                recipe = Recipe(tune_steps(bed, network), lr, offset_lr)
                yield Run(bed, network, arm, SELECTION_MAP[bed], recipe, SELECTION, targets=usual_targets(network))


def chosen(rows: dict[str, dict], bed: str, network: str) -> dict[str, Recipe]:
    """Each arm's recipe, by validation."""
    found, network = {}, tuned_with(bed, network)
    steps, targets = tune_steps(bed, network), usual_targets(network)
    for arm in tuned(bed):
        own = [r for r in rows.values() if (r['bed'], r['network'], r['arm']) == (bed, network, arm)]
        own = [r for r in own if r['geometry'] == SELECTION_MAP[bed] and r['source'] == 'identity']
        own = [r for r in own if r['recipe']['steps'] == steps and r['targets'] == targets]
        found[arm] = Recipe(steps, **runs.best(own))
    return found


Recipes = dict[str, Recipe]


def fine_tune(bed: str, network: str, arm: str, geometry: str, recipe: Recipe, **more: int) -> Run:
    """Of the network's usual layers, for every baseline."""
    return Run(bed, network, arm, geometry, recipe, SEEDS, targets=usual_targets(network), **more)


def camera(
    bed: str, network: str, recipes: Recipes, maps: Sequence[str] | None = None, factor: int = 1
) -> Iterator[Run]:
    """Claim A: every arm after every map, the first map's first; ``factor``: see :func:`baseline`."""
    yield baseline(bed, network, SEEDS, factor=factor)
    for geometry in maps or MAPS.get(bed, REAL_MAPS):
        yield Run(bed, network, 'untouched', geometry, Recipe(0, 0), SEEDS, factor=factor)
        for arm in tuned(bed):
            yield fine_tune(bed, network, arm, geometry, recipes[arm], factor=factor)


def references(bed: str, network: str, factor: int = 1) -> Iterator[Run]:
    """What a known map gives without training; ``factor``: see :func:`baseline`."""
    for geometry in MAPS.get(bed, REAL_MAPS)[:2]:
        for arm in ('rectified', 'computed') if not testbeds.TESTBEDS[bed].boxes else ():
            yield Run(bed, network, arm, geometry, Recipe(0, 0), SEEDS, factor=factor)


def layers(bed: str, network: str, recipes: Recipes, geometry: str) -> Iterator[Run]:
    """Which layers: more of the backbone's than the last three."""
    for targets in ('last:4', 'last:8') if 's2' in network else ('last:12', 'last:6'):
        for arm in ('upgraded', '5x5'):
            yield Run(bed, network, arm, geometry, recipes[arm], SEEDS, targets=targets)


def lengths(
    bed: str, network: str, recipes: Recipes, geometry: str, parts: tuple[float, ...], arms: tuple[str, ...]
) -> Iterator[Run]:
    """The same with other lengths, as parts of the baseline's."""
    for part in parts:
        steps = round(part * runs.baseline_steps(bed, network))
        for arm in arms:
            yield fine_tune(bed, network, arm, geometry, replace(recipes[arm], steps=steps))


def labels(bed: str, network: str, recipes: Recipes, geometry: str) -> Iterator[Run]:
    """The same with few labelled pictures, for half as long."""
    for count in (10, 30, 100):
        for arm in tuned(bed):
            recipe = replace(recipes[arm], steps=tune_steps(bed, network) // 2)
            yield fine_tune(bed, network, arm, geometry, recipe, labels=count)


def ceiling(bed: str, network: str, geometry: str, offset_lr: float) -> Iterator[Run]:
    """Trained on the new camera's pictures for the baseline's whole length, plain and deformable."""
    yield baseline(bed, network, SEEDS, geometry)
    yield scratch_upgraded(bed, network, offset_lr, SEEDS, geometry)


def dose(network: str, recipes: Recipes) -> Iterator[Run]:
    """How strong the map is; half as long as the main table's."""
    steps = TUNE_STEPS['shapes'] // 2
    for geometry in strengths():
        yield Run('shapes', network, 'untouched', geometry, Recipe(0, 0), SEEDS)
        for arm in ('control', '5x5', 'upgraded'):
            yield Run('shapes', network, arm, geometry, replace(recipes[arm], steps=steps), SEEDS)


def reach(recipes: Recipes) -> Iterator[Run]:
    """How much of the picture the network sees: one to four stages."""
    networks = sorted(NETWORKS['shapes'])
    yield from (baseline('shapes', network, SEEDS) for network in networks)
    for arm in ('untouched', 'control', '5x5', 'upgraded'):
        recipe = recipes[arm] if arm in recipes else Recipe(0, 0)
        yield from (Run('shapes', network, arm, 'fisheye', recipe, SEEDS) for network in networks)


def trained_out(bed: str, network: str, recipes: Recipes, offset_lr: float) -> Iterator[Run]:
    """Both claims from baselines that were trained :data:`LONGER` times as long; then what twice of that gives."""
    yield from camera(bed, network, recipes, MAPS.get(bed, REAL_MAPS)[:2], LONGER)
    yield from references(bed, network, LONGER)
    steps = LONGER * runs.baseline_steps(bed, network)
    for arm in ('control', '5x5', 'upgraded'):
        yield fine_tune(bed, network, arm, 'identity', replace(recipes[arm], steps=steps // 16), factor=LONGER)
    deformable = scratch_upgraded(bed, network, offset_lr, SEEDS)
    yield replace(deformable, recipe=replace(deformable.recipe, steps=steps))
    yield baseline(bed, network, SEEDS, factor=2 * LONGER)


# The offsets' rates from scratch; 2e-3 makes them fall apart.
SCRATCH_OFFSET_LRS = (2e-4, 5e-4)


def scratch_upgraded(
    bed: str, network: str, offset_lr: float, seeds: tuple[int, ...], geometry: str = 'identity'
) -> Run:
    plain = baseline(bed, network, seeds, geometry)
    recipe = replace(plain.recipe, offset_lr=offset_lr)
    return replace(plain, arm='scratch-upgraded', recipe=recipe, targets=usual_targets(network))


def scratch_selection(bed: str, network: str) -> Iterator[Run]:
    """The offsets' rate of a deformable network from scratch, on the seeds of the selection."""
    for offset_lr in SCRATCH_OFFSET_LRS:
        yield scratch_upgraded(bed, network, offset_lr, SELECTION)


def scratch_rate(bed: str, network: str, rows: dict[str, dict]) -> float:
    """The rate that :func:`scratch_selection` has found."""
    keys = [run.key(seed) for run in scratch_selection(bed, network) for seed in run.seeds]
    return runs.best(rows[key] for key in keys if key in rows)['offset_lr']


def same_data(bed: str, network: str, recipes: Recipes, rows: dict[str, dict]) -> Iterator[Run]:
    """Claim B: the baseline's own pictures; is a quarter of the steps worth the deformable network from scratch?"""
    plain = baseline(bed, network, SEEDS)
    steps = plain.recipe.steps

    def tuned_on(arm: str, part: float, **changes) -> Run:
        recipe = replace(recipes[arm], steps=round(part * steps), **changes)
        return fine_tune(bed, network, arm, 'identity', recipe)

    yield plain
    yield scratch_upgraded(bed, network, scratch_rate(bed, network, rows), SEEDS)
    yield replace(plain, arm='scratch-dilated', targets=usual_targets(network))
    for arm in ('control', '5x5', 'upgraded', 'offsets'):
        yield tuned_on(arm, 1 / 4)
    yield replace(tuned_on('upgraded', 1 / 4, offset_lr=recipes['upgraded'].lr), label='same')
    yield baseline(bed, network, SEEDS, factor=2)
    for part in (1 / 8, 1 / 2, 1.0):
        yield from (tuned_on(arm, part) for arm in ('control', 'upgraded'))
    yield replace(scratch_upgraded(bed, network, SCRATCH_LR, SEEDS), label='same')


ALL = ('control', '5x5', 'upgraded', 'offsets')


def part(name: str, bed: str, network: str, recipes: Recipes, rows: dict[str, dict]) -> Iterator[Run]:
    """One part of a test bed's plan; rates are those that the selection chose."""
    geometry = SELECTION_MAP[bed]
    every: dict[str, Callable[[], Iterator[Run]]] = {
        'camera': lambda: camera(bed, network, recipes),
        'references': lambda: references(bed, network),
        'layers': lambda: layers(bed, network, recipes, geometry),
        'quarter': lambda: lengths(
            bed, network, recipes, geometry, (1 / 32, 1 / 16), ('upgraded', 'control', 'offsets')
        ),
        'lengths': lambda: lengths(bed, network, recipes, geometry, (1 / 32, 1 / 16, 1 / 4, 1 / 2), ALL),
        'long': lambda: lengths(bed, network, recipes, geometry, (1 / 2, 1.0), ('control', 'upgraded')),
        'same': lambda: same_data(bed, network, recipes, rows),
        'labels': lambda: labels(bed, network, recipes, geometry),
        'ceiling': lambda: ceiling(bed, network, geometry, scratch_rate(bed, network, rows)),
        'trained-out': lambda: trained_out(bed, network, recipes, scratch_rate(bed, network, rows)),
        'dose': lambda: dose(network, recipes),
        'reach': lambda: reach(recipes),
    }
    return every[name]()


PARTS = (
    'camera',
    'references',
    'layers',
    'quarter',
    'same',
    'lengths',
    'labels',
    'ceiling',
    'trained-out',
    'dose',
    'reach',
    'long',
)
