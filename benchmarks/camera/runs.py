# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Runs of a plan, each written down as it ends and never repeated."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from . import arms, networks
from .detection import Detector, average_precision, detection_loss
from .references import ComputedOffsets, Rectified
from .testbeds import CAMERAS, TESTBEDS, Boxes, Geometry, Pictures, load, prepare
from .training import Job, Recipe, mean_iou, segmentation_loss, train

SELECTION = (100, 101)
"""Seeds that rates and lengths are chosen with; their test pictures are never read."""


SIDE_BY_SIDE = 24
"""How many trainings share a GPU."""


@dataclass(frozen=True)
class Run:
    """One line of a plan, for several seeds.

    Attributes:
        bed: a test bed.
        network: see ``networks.config``.
        arm: of ``arms.ARMS``, ``'untouched'``, ``'rectified'``, ``'computed'``, or ``'scratch'`` (``'scratch-upgraded'``
            and so on: an arm's network from its initialisation).
        geometry: what its pictures went through.
        recipe: how it trains; no steps for what does not.
        seeds: of the baselines.
        labels: how many labelled pictures there are, or None for all.
        targets: layers that the arm changes.
        source: geometry that the baseline was trained on.
        label: name that the report groups by.
        factor: length of its baseline over the usual one.
    """

    bed: str
    network: str
    arm: str
    geometry: str
    recipe: Recipe
    seeds: tuple[int, ...]
    labels: int | None = None
    targets: str = 'last:3'
    source: str = 'identity'
    label: str = ''
    factor: int = 1

    def key(self, seed: int) -> str:
        recipe = self.recipe
        rates = f'{recipe.optimizer},{recipe.lr:g},{recipe.offset_lr:g},{recipe.decay:g}'
        parts = (self.bed, self.network, self.arm, self.source, self.geometry, self.targets, self.labels)
        longer = () if self.factor == 1 else (f'x{self.factor}',)
        return ' '.join(map(str, (*parts, recipe.steps, rates, seed, *longer)))

    @property
    def from_scratch(self) -> bool:
        return self.arm.startswith('scratch')


class Lab:
    """Runs plans: keeps baselines, data and results.

    Args:
        out: folder of ``results.jsonl``, of the baselines and of prepared pictures.
        data: folder of the packed data sets.
        device: ``'cpu'`` or ``'cuda'``.
        weights: of an ImageNet ResNet-50, for the networks that start from it.
        deadline: a time of ``time.monotonic()`` after which nothing new is started.
        steps: part of the steps that are taken, and of the scenes composed, for a trial.
        workers: processes that prepare pictures.
        bfloat16: train in mixed precision, which takes half the time on a CPU; scores are float32's.
    """

    def __init__(
        self,
        out: Path,
        data: Path = Path('data'),
        device: str = 'cpu',
        weights: Path | None = None,
        deadline: float = float('inf'),
        steps: float = 1.0,
        workers: int = 1,
        bfloat16: bool = False,
    ):
        self.out, self.archives, self.device, self.weights = out, data, device, weights
        self.deadline, self.steps, self.workers, self.bfloat16 = deadline, steps, workers, bfloat16
        self.cache = out / 'pictures'
        out.mkdir(parents=True, exist_ok=True)
        self.file = out / 'results.jsonl'
        self.rows = read(self.file)
        self._data: dict[tuple[str, str, str], Pictures] = {}
        self._about = {'device': _device_name(device), 'torch': str(torch.__version__), 'commit': _commit()}
        if bfloat16:
            self._about['precision'] = 'bfloat16'

    def run(self, plan: Iterable[Run]) -> None:
        """Run what the plan holds and the results do not; on a GPU what trains alike trains side by side."""
        for _, alike in itertools.groupby(plan, key=lambda run: (run.from_scratch, run.recipe.steps)):
            missing = [(run, seed) for run in alike for seed in run.seeds if run.key(seed) not in self.rows]
            size = SIDE_BY_SIDE if self.device == 'cuda' else 1
            for first in range(0, len(missing), size):
                if time.monotonic() > self.deadline:
                    print('time is up', flush=True)
                    return
                self._run(missing[first : first + size])

    def data(self, bed: str, geometry: str, split: str) -> Pictures:
        key = (bed, geometry, split)
        if key not in self._data:
            if self.device == 'cpu':  # one geometry at a time
                self._data = {kept: value for kept, value in self._data.items() if kept[:2] == key[:2]}
            prepare(bed, [geometry], self.archives, self.cache, self.workers, self.steps)
            self._data[key] = load(self.cache, bed, geometry, split, self.device)
        return self._data[key]

    def _run(self, runs: list[tuple[Run, int]]) -> None:
        """Each run with its seed; all of them take as many steps."""
        began, steps = time.monotonic(), runs[0][0].recipe.steps
        if steps:
            steps = max(4, round(steps * self.steps))
        models = [self._network(run, seed) for run, seed in runs]
        jobs: list[Job] = []
        if steps:
            jobs = [self._job(run, seed, steps, model) for (run, seed), model in zip(runs, models, strict=True)]
            boxes = TESTBEDS[runs[0][0].bed].boxes
            loss = torch.autocast(self.device, torch.bfloat16, self.bfloat16)(
                detection_loss if boxes else segmentation_loss
            )
            train(jobs, loss, graphs=not boxes)
        for position, ((run, seed), model) in enumerate(zip(runs, models, strict=True)):
            row = {'key': run.key(seed), **asdict(run), 'seed': seed, **self._scores(run, seed, model), **self._about}
            del row['seeds']
            if jobs:
                row |= {'seconds': jobs[position].seconds, 'loss': jobs[position].loss}
            if run.arm == 'scratch':
                torch.save(model.state_dict(), self._baseline(run, seed))
            self._write(row)
            print(f'{run.key(seed)}: {row["val"]:.2f}', flush=True)
        print(f'{len(runs)} runs of {steps} steps: {time.monotonic() - began:.1f} s', flush=True)
        if self.device == 'cuda':
            jobs.clear()
            torch.cuda.empty_cache()

    def _job(self, run: Run, seed: int, steps: int, model: nn.Module) -> Job:
        data = self.data(run.bed, run.geometry, 'train').labelled(run.labels)
        return Job(model, arms.groups(model), data, replace(run.recipe, steps=steps), seed)

    def _network(self, run: Run, seed: int) -> nn.Module:
        bed = TESTBEDS[run.bed]
        weights = self.weights if networks.pretrained(run.network) else None
        kind = Detector if bed.boxes else networks.Segmentor
        model = networks.build(kind, run.network, bed.classes, seed, weights).to(self.device)
        if not run.from_scratch:
            held = torch.load(self._baseline(run, seed), weights_only=True, map_location=self.device)
            model.load_state_dict(held)
        arm = run.arm.partition('scratch')[2].lstrip('-') or 'control' if run.from_scratch else run.arm
        if arm in arms.ARMS:
            arms.start(model, arm, run.targets)
        if run.geometry in CAMERAS:
            model.merge(CAMERAS[run.geometry].classes)
        # a fifth faster on a CPU
        return model.to(memory_format=torch.channels_last) if self.device == 'cpu' else model

    def _baseline(self, run: Run, seed: int) -> Path:
        geometry = run.geometry if run.from_scratch else run.source
        steps = run.recipe.steps if run.from_scratch else run.factor * baseline_steps(run.bed, run.network)
        return self.out / f'{run.bed}-{run.network}-{geometry.partition(":")[0]}-{steps}-{seed}.pth'

    def _scores(self, run: Run, seed: int, model: nn.Module) -> dict:
        scores: dict = {}
        for split in ('val', 'test') if seed not in SELECTION else ('val',):
            data, classes = self.data(run.bed, run.geometry, split), TESTBEDS[run.bed].classes
            if isinstance(data, Boxes):
                found = {name: round(value, 3) for name, value in average_precision(model, data, classes).items()}
                scores |= {split: found['ap'], f'{split}_more': found}
            else:
                scores[split] = round(mean_iou(model, data, classes, predict=_reference(run, model, split)), 3)
        if 'upgraded' in run.arm or run.arm == 'offsets':
            pictures = self.data(run.bed, run.geometry, 'val').pictures[:16]
            scores['offsets'] = {k: round(v, 4) for k, v in arms.offsets_rms(model, pictures).items()}
        return scores

    def _write(self, row: dict) -> None:
        self.rows[row['key']] = row
        with self.file.open('a', encoding='utf8') as file:
            file.write(json.dumps(row) + '\n')


BASELINE_STEPS = {'shapes': 4000, 'shape-boxes': 2000, 'camvid': 3000, 'horses': 2000, 'msrc': 3000}
BASELINE_STEPS |= {'bccd': 2000, 'chess': 2000}


def baseline_steps(bed: str, network: str) -> int:
    """Of the baseline: a quarter of a set's where the network starts from ImageNet's weights."""
    return BASELINE_STEPS[bed] // (4 if networks.pretrained(network) else 1)


def _reference(run: Run, model: nn.Module, split: str) -> Callable[[Tensor, slice], Tensor] | None:
    kinds = {'rectified': Rectified, 'computed': ComputedOffsets}
    if run.arm not in kinds:
        return None
    return kinds[run.arm](model, run.bed, Geometry.parse(run.geometry), split)


def read(file: Path) -> dict[str, dict]:
    """Rows of a file of results by key."""
    if not file.is_file():
        return {}
    rows = [json.loads(line) for line in file.read_text(encoding='utf8').splitlines() if line.strip()]
    return {row['key']: row for row in rows}


def best(rows: Iterable[dict], names: Sequence[str] = ('lr', 'offset_lr')) -> dict[str, float]:
    """The rates with the best mean validation score among the rows of the selection's seeds."""
    found: dict[tuple, list[float]] = {}
    for row in rows:
        if row['seed'] in SELECTION:
            found.setdefault(tuple(row['recipe'][name] for name in names), []).append(row['val'])
    if not found:
        raise LookupError('no row of the selection matches')
    chosen = max(found, key=lambda rates: sum(found[rates]) / len(found[rates]))
    return dict(zip(names, chosen, strict=True))


def _device_name(device: str) -> str:
    if device == 'cuda':
        return torch.cuda.get_device_name()
    return f'CPU, {torch.get_num_threads()} thread(s)'


def _commit() -> str:
    try:
        return subprocess.run(
            ['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ''
