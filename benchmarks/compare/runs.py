# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The experiment behind a claim: four arms over several seeds, each run through the project's own tools.

    baseline    the config as it is
    retrained   the deformable network, trained as the baseline was, from the weights that it started from
    upgraded    the baseline's checkpoint upgraded and fine-tuned for a part of the schedule
    control     the baseline's checkpoint trained on for the same part, no layer changed

Each run leaves ``result.json`` in its folder; a run that has one is not repeated, one that was cut is resumed.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from mmengine.device import get_device

from benchmarks.timing import conditions
from mmdeform_upgrade.checkpoint import file_sha256
from mmdeform_upgrade.config import Length, control_changes, retrain_changes, upgrade_changes
from mmdeform_upgrade.config.text import inheriting_text
from mmdeform_upgrade.errors import UpgradeError
from mmdeform_upgrade.targets import Targets

from ..tool_runs import read_curve, read_test_score, read_train_seconds, run_tool

if TYPE_CHECKING:
    from mmengine.config import Config

ARMS = ('baseline', 'retrained', 'upgraded', 'control')
FINE_TUNES = ARMS[2:]


@dataclass(frozen=True)
class Experiment:
    """What is run, and where.

    Attributes:
        config: the baseline's config file.
        work_dir: folder of everything; one folder a seed and arm inside.
        metric: name of the score in the logs, such as ``'pascal_voc/mAP'`` or ``'mIoU'``.
        targets, exclude, part, deform_groups: see :func:`upgrade_config`.
        epoch_ratio: length of the fine-tune over the baseline's.
        options: settings for every run, as ``key=value``.
        tune_options: settings for the fine-tunes alone.
        variant: name of these settings, where several share one baseline in ``work_dir``.
        train_command: how to train on a cluster, with ``{config}``, ``{work_dir}``; None trains here.
        lr_mult, offset_lr_mult: rates of the fine-tunes, see :func:`upgrade_config`.
        repeat: which fine-tune of the same baseline this is; each from 1 on has batches of its own.
    """

    config: str
    work_dir: str
    metric: str
    targets: Targets = 'last:3'
    exclude: Sequence[str] = ()
    part: str = 'backbone'
    deform_groups: int = 1
    epoch_ratio: float = 0.25
    options: Sequence[str] = ()
    tune_options: Sequence[str] = ()
    variant: str = ''
    train_command: Optional[str] = None
    lr_mult: float = 1.0
    offset_lr_mult: Optional[float] = None
    repeat: int = 0

    def settings(self, arm: str) -> Dict[str, Any]:
        """What an arm depends on, and runs must share to be compared."""
        names = ['metric', 'options']
        if arm in ('upgraded', 'retrained'):
            names += ['targets', 'exclude', 'part', 'deform_groups']
        if arm in FINE_TUNES:
            names += ['epoch_ratio', 'tune_options']
            names += ['lr_mult'] * (self.lr_mult != 1)
            names += ['repeat'] if self.repeat else []
        if arm == 'upgraded' and self.offset_lr_mult is not None:
            names.append('offset_lr_mult')
        kept = {name: getattr(self, name) for name in names}
        return json.loads(json.dumps({**kept, 'config': os.path.basename(self.config)}))

    def name(self, arm: str) -> str:
        """Name of an arm's folder and config file; variants share the baseline, repeats the retrained network, too."""
        name = f'{arm}-{self.variant}' if self.variant and arm != 'baseline' else arm
        return f'{name}-repeat{self.repeat}' if self.repeat and arm in FINE_TUNES else name


@dataclass(frozen=True)
class Result:
    """One run: its test score, its validation curve, and how long it took.

    ``curve`` holds (epoch or iteration, score), from 0 for what was scored before the first step; ``machine`` what
    :func:`conditions` says of the one that tested it.
    """

    arm: str
    seed: int
    score: float
    curve: List[Tuple[int, float]]
    length: int
    unit: str
    train_seconds: float
    checkpoint: str
    checkpoint_sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)


def folder(experiment: Experiment, seed: int, arm: str) -> Path:
    """Where a run keeps everything."""
    return Path(experiment.work_dir) / f'seed{seed}' / experiment.name(arm)


def read_result(experiment: Experiment, seed: int, arm: str) -> Optional[Result]:
    """A finished run, or None.

    Raises:
        UpgradeError: it was made with other settings.
    """
    path = folder(experiment, seed, arm) / 'result.json'
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding='utf8'))
    now = experiment.settings(arm)
    changed = sorted(key for key in now if kept['settings'].get(key) != now[key])
    if changed:
        raise UpgradeError(
            f'{path} was made with other settings ({", ".join(changed)}): name another work directory, '
            'or remove this run'
        )
    kept['curve'] = [(int(step), float(score)) for step, score in kept['curve']]
    return Result(**kept)


def run_arm(experiment: Experiment, seed: int, arm: str, run: Callable[..., Any] = run_tool) -> Result:
    """Train and test one arm of one seed, or go on where that was cut, or return what is there.

    Args:
        experiment: what to run, and where.
        seed: of the run.
        arm: one of ``ARMS``.
        run: what runs a tool of the project, with the arguments of :func:`run_tool`.

    Raises:
        UpgradeError: a step failed, or an arm that starts from the baseline has none yet.
    """
    if arm not in ARMS:
        raise UpgradeError(f'arm {arm!r} is unknown; there are {", ".join(ARMS)}')
    if found := read_result(experiment, seed, arm):
        return found
    config = write_config(experiment, seed, arm)
    work_dir = folder(experiment, seed, arm)
    length = _length(config)
    _train(experiment, config, work_dir, f'seed {seed}: {arm}', length, run)
    checkpoint = _last_checkpoint(work_dir, length)
    tests = work_dir / 'test'
    run(
        'test.py', config, checkpoint, '--work-dir', tests, title=f'seed {seed}: {arm}, test', log=work_dir / 'test.txt'
    )
    score = read_test_score(tests, experiment.metric)
    result = Result(
        arm,
        seed,
        score,
        read_curve(work_dir, experiment.metric),
        length.total,
        length.unit,
        read_train_seconds(work_dir),
        checkpoint.name,
        file_sha256(str(checkpoint)),
        experiment.settings(arm),
        conditions(get_device()),
    )
    partial = work_dir / 'result.json.part'
    partial.write_text(json.dumps(asdict(result), indent=1) + '\n', encoding='utf8')
    partial.replace(work_dir / 'result.json')
    return result


def write_config(experiment: Experiment, seed: int, arm: str) -> Path:
    """Write the short config of one run; it inherits that of its seed's baseline."""
    from mmengine.config import Config

    home = folder(experiment, seed, arm).parent
    home.mkdir(parents=True, exist_ok=True)
    baseline = home / 'baseline.py'
    if not baseline.exists():
        changes = {**_options(experiment.options), 'randomness': {'seed': seed}}
        baseline.write_text(inheriting_text(experiment.config, str(baseline), changes), encoding='utf8')
    if arm == 'baseline':
        return baseline
    path = home / f'{experiment.name(arm)}.py'
    inherited = Config.fromfile(baseline)
    changes = Config(_arm_changes(experiment, seed, arm, inherited))
    if arm in FINE_TUNES:
        if experiment.repeat:
            changes.randomness = dict(seed=seed + 1000 * experiment.repeat)
        changes.merge_from_dict(_options(experiment.tune_options))
    path.write_text(inheriting_text(str(baseline), str(path), changes.to_dict()), encoding='utf8')
    return path


def _arm_changes(experiment: Experiment, seed: int, arm: str, baseline: Config) -> Dict[str, Any]:
    layers: Dict[str, Any] = dict(
        targets=experiment.targets,
        part=experiment.part,
        exclude=experiment.exclude,
        deform_groups=experiment.deform_groups,
    )
    if arm == 'retrained':
        return retrain_changes(baseline, **layers)
    trained = read_result(experiment, seed, 'baseline')
    if trained is None:
        raise UpgradeError(f'seed {seed}: {arm} starts from the baseline, which has no result yet; run that arm first')
    tuned: Dict[str, Any] = dict(
        load_from=str(folder(experiment, seed, 'baseline').absolute() / trained.checkpoint),
        epoch_ratio=experiment.epoch_ratio,
        lr_mult=experiment.lr_mult,
    )
    if arm == 'control':
        return control_changes(baseline, **tuned)
    return upgrade_changes(baseline, **tuned, **layers, offset_lr_mult=experiment.offset_lr_mult, guard=True)


def _options(options: Sequence[str]) -> Dict[str, Any]:
    from mmengine.config import Config, DictAction

    cfg = Config({})
    for option in options:
        key, sign, value = option.partition('=')
        if not sign:
            raise UpgradeError(f'option {option!r} is no key=value')
        cfg.merge_from_dict({key: DictAction._parse_iterable(value)})
    return cfg._cfg_dict.to_dict()


def _length(config: Path) -> Length:
    from mmengine.config import Config

    return Length.of(Config.fromfile(config))


def _train(
    experiment: Experiment, config: Path, work_dir: Path, title: str, length: Length, run: Callable[..., Any]
) -> None:
    if experiment.train_command is None:
        run(
            'train.py',
            config,
            '--work-dir',
            work_dir,
            '--resume',
            title=title,
            length=length,
            log=config.with_name(f'{config.stem}.txt'),
        )
    else:
        command = experiment.train_command.format(config=config, work_dir=work_dir)
        ended = subprocess.run(shlex.split(command), check=False)
        if ended.returncode:
            raise UpgradeError(f'{title}: {command} ended with status {ended.returncode}')


def _last_checkpoint(work_dir: Path, length: Length) -> Path:
    path = work_dir / f'{"epoch" if length.unit == "epochs" else "iter"}_{length.total}.pth'
    if not path.is_file():
        raise UpgradeError(
            f'{work_dir} has no {path.name} after training: default_hooks.checkpoint must save the last '
            'checkpoint (save_last)'
        )
    return path
