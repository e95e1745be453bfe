# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The main job from end to end: a trained checkpoint, another camera, its upgrade and what it has to beat."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmdeform_upgrade.errors import UpgradeError

from ..tool_runs import follow_tool, read_curve, read_test_score, steps_done
from .progress import Progress, Step
from .scenes import HOME, compose
from .tasks import Task

TRAINED = ('control', 'offsets', 'upgraded')
# A tool in a thread of its own: two of them share two cores best.
ONE_THREAD = {name: '1' for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}
# What each step takes on two cores, in seconds; the bar of the whole is measured in them.
EXPECTED = {
    'compose scenes through a fisheye': 50.0,
    'plan and write the upgrade': 8.0,
    'baseline, its own camera': 8.0,
    'baseline, the new camera': 8.0,
    'upgrade, before its first step': 8.0,
    "offsets' signal, its own camera": 14.0,
    "offsets' signal, the new camera": 20.0,
    'train the control': 90.0,
    'train the upgrade': 115.0,
    'train an adapter: offsets alone': 60.0,
    'adapter on, and off again': 12.0,
    'pictures and page': 10.0,
}


@dataclass(frozen=True)
class Sizes:
    """How much the demo does; the defaults take less than four minutes on two cores."""

    train: int = 300
    val: int = 60
    test: int = 200
    steps: int = 300
    batches: int = 32


@dataclass
class Results:
    """What the demo measured; scores are test mIoU or AP in per cent.

    Attributes:
        task: name of the task.
        scores: by network.
        curves: validation scores over steps, by network.
        signal: what ``offset_signal.py`` wrote, by camera: ``'home'`` and ``'camera'``.
        adapter: size in bytes, and scores on the baseline and taken off again.
        plan: what ``upgrade.py`` printed.
        minutes: of all of it.
    """

    task: str
    sizes: Sizes
    scores: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    signal: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    plan: str = ''
    minutes: float = 0.0

    @property
    def nothing_lost(self) -> bool:
        return self.scores['untouched'] == self.scores['baseline'] == self.adapter['off']

    def learning(self, camera: str) -> tuple[int, int]:
        """How many layers have a signal on a camera's pictures, of how many."""
        verdicts = [layer['verdict'] for layer in self.signal[camera]['layers']]
        return verdicts.count('learns'), len(verdicts)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), 'nothing_lost': self.nothing_lost, 'data': 'generated'}


class Demo:
    """The demo in a folder, which must not exist or be empty."""

    def __init__(self, out: Path, task: Task, sizes: Sizes, progress: Progress):
        if out.exists() and any(out.iterdir()):
            raise UpgradeError(f'{out} is not empty: name another folder with --out, or remove it')
        for folder in ('logs', 'tests'):
            (out / folder).mkdir(parents=True)
        self.out, self.task, self.sizes, self.progress = out, task, sizes, progress
        self.results = Results(task.name, sizes)

    def run(self) -> Results:
        """Compose, upgrade, then train on one core while the other one proves, measures and trains as well."""
        sizes = self.sizes
        counts = {'train': sizes.train, 'val': sizes.val, 'test': sizes.test}
        with self.progress.step('compose scenes through a fisheye', sum(counts.values())) as step:
            compose(self.out / 'data', self.task, counts, 2, step.update)
        for name, data in (('home', HOME), ('camera', '')):
            self._write_config(name, self.out / 'data' / data)
        self._upgrade()
        self._two_at_a_time(
            [self._score_baseline, self._score_untouched, self._measure_signals, lambda: self._train('upgraded')],
            [lambda: self._train('control'), lambda: self._train('offsets'), self._try_adapter],
        )
        self.results.minutes = round(self.progress.seconds / 60, 2)
        return self.results

    def config(self, name: str) -> Path:
        return self.out / f'{name}.py'

    def checkpoint(self, name: str) -> Path:
        return self.out / name / f'iter_{self.sizes.steps}.pth'

    def _write_config(self, name: str, data: Path) -> None:
        """The baseline's config on a camera's pictures: what a user writes first."""
        loaders = ''.join(
            f'{split}_dataloader = dict(dataset=dict(data_root={str(data)!r}))\n' for split in ('train', 'val', 'test')
        )
        self.config(name).write_text(
            f'_base_ = [{str(self.task.config)!r}]\n{loaders}default_hooks = dict(logger=dict(interval=10))\n',
            encoding='utf8',
        )

    def _upgrade(self) -> None:
        common = (self.config('camera'), self.task.checkpoint, '--max-iters', self.sizes.steps)
        common += ('--lr-mult', self.task.lr_mult)
        with self.progress.step('plan and write the upgrade', 2) as step, ThreadPoolExecutor(2) as pool:
            runs = [
                ('--out', self.config('upgraded'), '--control', self.config('control')),
                ('--out', self.config('offsets'), '--train', 'offsets'),
            ]
            texts = list(pool.map(lambda end: self._tool(step, 'upgrade.py', *common, *end, log=end[1].stem), runs))
            self.results.plan = texts[0]

    def _score_baseline(self) -> None:
        self._test('home', 'baseline, its own camera', 'home', self.task.checkpoint)
        self._test('baseline', 'baseline, the new camera', 'camera', self.task.checkpoint)

    def _score_untouched(self) -> None:
        self._test('untouched', 'upgrade, before its first step', 'upgraded', self.task.checkpoint)

    def _test(self, name: str, title: str, config: str, checkpoint: Path) -> None:
        with self.progress.step(title) as step:
            self._score(step, name, config, checkpoint)

    def _score(self, step: Step, name: str, config: str, checkpoint: Path) -> None:
        folder = self.out / 'tests' / name
        self._tool(step, 'test.py', self.config(config), checkpoint, '--work-dir', folder, log=f'test-{name}')
        self.results.scores[name] = self.task.factor * read_test_score(folder, self.task.metric)
        step.update(0, f'test {self.task.score} {self.results.scores[name]:.2f}')

    def _measure_signals(self) -> None:
        for name, camera in (('home', 'its own camera'), ('camera', 'the new camera')):
            with self.progress.step(f"offsets' signal, {camera}") as step:
                out = self.out / f'signal-{name}'
                tool, sizes = 'analysis_tools/offset_signal.py', ('--batches', self.sizes.batches)
                self._tool(step, tool, self.config(name), self.task.checkpoint, '--out', out, *sizes, log=out.name)
                self.results.signal[name] = json.loads(out.with_suffix('.json').read_text(encoding='utf8'))
                step.note = '{} of {} layers learn'.format(*self.results.learning(name))

    def _train(self, name: str) -> None:
        title = {
            'control': 'train the control',
            'upgraded': 'train the upgrade',
            'offsets': 'train an adapter: offsets alone',
        }[name]
        with self.progress.step(title, self.sizes.steps + 1) as step:
            work_dir = self.out / name
            self._tool(step, 'train.py', self.config(name), '--work-dir', work_dir, log=name)
            curve = read_curve(work_dir, self.task.metric)
            self.results.curves[name] = [(steps, self.task.factor * score) for steps, score in curve]
            self._score(step, name, name, self.checkpoint(name))

    def _try_adapter(self) -> None:
        adapter = self.out / 'adapter.safetensors'
        with self.progress.step('adapter on, and off again') as step:
            self._tool(
                step,
                'model_converters/delta.py',
                'make',
                self.task.checkpoint,
                self.checkpoint('offsets'),
                adapter,
                log='delta',
            )
            tool, folder = 'benchmarks/demo/adapter.py', self.out / 'tests' / 'adapter'
            files = (self.config('camera'), self.task.checkpoint, adapter)
            text = self._tool(step, tool, *files, '--metric', self.task.metric, '--work-dir', folder, log='adapter')
            found = json.loads(text.strip().splitlines()[-1])
            scores = {name: self.task.factor * score for name, score in found.items()}
            self.results.adapter = {'bytes': adapter.stat().st_size, **scores}
            step.note = '{}: {without:.2f}, on {on:.2f}, off {off:.2f}'.format(self.task.score, **scores)

    def _tool(self, step: Step, name: str, *args: object, log: str) -> str:
        def follow(line: str) -> None:
            done = steps_done(line)
            if done is not None:
                loss = re.search(r' loss: ([\d.]+)', line)
                step.update(done, f'loss {loss.group(1)}' if loss else '')
            elif found := re.search(rf' {self.task.metric}: ([\d.]+)', line):
                step.update(0, f'{self.task.score} {self.task.factor * float(found.group(1)):.2f}')
            else:
                step.update(0)

        file = self.out / 'logs' / f'{log}.txt'
        return follow_tool(name, *args, title=name, log=file, on_line=follow, env=ONE_THREAD)

    @staticmethod
    def _two_at_a_time(*lanes: list[Callable[[], None]]) -> None:
        def walk(lane: list[Callable[[], None]]) -> None:
            for step in lane:
                step()

        with ThreadPoolExecutor(len(lanes)) as pool:
            for done in [pool.submit(walk, lane) for lane in lanes]:
                done.result()
