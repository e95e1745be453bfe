# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""``DeformUpgradeHook``: owns the checkpoint of an upgrade, never the network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import find_latest_checkpoint

from ..analysis.offsets import OffsetRecorder, share_that_left
from ..checkpoint import StateDict, clean_state_dict, file_sha256, fit_baseline, import_checkpoint
from ..config.rates import check_offset_rates
from ..config.settings import is_count, listed_schedulers, warms_up
from ..errors import CheckpointError, ConfigError, listed, naming
from ..importers import OWN_NAMES, Imported
from ..layers import merging_method, upgraded_layers
from ..offsets.step_limit import MAX_STEP, StepLimit
from ..ops.autograd import run_uncompiled
from .loading import check_optimizer_state, lacking_for_resume, local_path, read_checkpoints_safely, refuse_to_overwrite
from .run import bare_network, checkpoint_hooks, kept_random_state, numbers_in, whole_state_dict

META_KEY = 'deform_upgrade'
_LEFT = 0.5  # share of a layer's taps from which on it is said that they leave the map


class DeformUpgradeHook(Hook):
    """Loads a trained baseline into the upgraded network, verifies it, scores it, and records where it came from.

    Where one step of the offsets' Adam moves a layer's offsets too far, as in wide layers with large activations, the
    rate of that layer is lowered, its first steps with it, and the log says so. Validations warn of layers whose offsets
    have led most taps out of the map.

    The network itself is built by the config (``type='DeformUpgrade'`` or a ``dcn`` switch); see
    ``mmdeform_upgrade.mm.plugin``. Checkpoints are read without running anything that they hold: from the moment that
    the hook is built, MMEngine reads files in this process through the package's safe readers.

    Args:
        val_before_train: validate the untouched upgrade before the first step. The score is logged, stored in every
            checkpoint's ``meta['deform_upgrade']`` and counts for ``save_best``, so that the best checkpoint of a run
            is never below the baseline. The random state of the training is not touched by it.
        max_step: how far one step of the offsets' Adam may move the offsets of a layer, root mean square in pixels of
            its input, on small maps less (see :class:`StepLimit`); ``float('inf')`` leaves all rates as they are.

    Raises (from the runner's calls):
        ConfigError: the network has no ``ZeroOffsetDCN``, there is nothing to load, or the run would write its
            checkpoints over those of the baseline.
        CheckpointError: the checkpoint does not fit; every key that is missing, unexpected or of another shape is
            named, and every setting that would change a foreign baseline's numbers.
    """

    # Before EMAHook and CheckpointHook, which work on what this hook makes of the checkpoint.
    priority = 'VERY_HIGH'

    def __init__(self, val_before_train: bool = True, max_step: float = MAX_STEP):
        read_checkpoints_safely()  # FlexibleRunner reads before it calls any hook
        self.val_before_train = val_before_train
        self.max_step = max_step
        self.provenance: dict[str, Any] = {}
        self._loaded: StateDict | None = None
        self._untouched = False
        self._scores: Mapping[str, Any] = {}
        self._recorder: OffsetRecorder | None = None
        self._limit: StepLimit | None = None
        self._warned: set[str] = set()

    def before_run(self, runner) -> None:
        """Check that there is something to do, and something to start from."""
        if not upgraded_layers(bare_network(runner)):
            raise ConfigError(
                'DeformUpgradeHook: the model has no ZeroOffsetDCN; set model.backbone=dict('
                "type='DeformUpgrade', base_type=..., targets=...), or take the hook out"
            )
        blocks = [block for block in bare_network(runner).modules() if merging_method(block) and upgraded_layers(block)]
        if blocks:  # built by the framework's own conv_cfg; DeformUpgrade refuses them itself
            raise ConfigError(
                f'DeformUpgradeHook: {merging_method(blocks[0])} merges branches for deployment, where the offsets of its '
                'deformable layers would be lost: take them out of such blocks'
            )
        if runner._load_from is not None:
            runner._load_from = local_path(runner._load_from)  # without a scheme: the import is this hook's
        elif runner._resume and find_latest_checkpoint(runner.work_dir) is None:
            raise ConfigError(
                f'resume: there is no checkpoint in {runner.work_dir}, and training would start from '
                'random weights; run without resume, with load_from the baseline'
            )

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Import a baseline and make it complete with zero offsets; take an upgraded checkpoint as it is."""
        with naming(runner._load_from or runner.work_dir):
            given = _fitted(runner, checkpoint)
        checkpoint['state_dict'] = given.state_dict
        self._loaded, self._untouched = given.state_dict, bool(given.added)
        self.provenance = dict((checkpoint.get('meta') or {}).get(META_KEY) or {})
        if not self._untouched:
            if not runner._resume:
                runner.logger.info('The checkpoint is upgraded already and was loaded as it is.')
            return
        self.provenance = {**_provenance(runner), 'imported': given.summary()}
        if given.format != OWN_NAMES:
            runner.logger.info(f'Imported {given}')
        runner.logger.info(
            f'Baseline of {given.summary()["tensors"]} tensors fits; {len(given.added)} offset tensors added as zeros.'
        )

    def before_train(self, runner) -> None:
        """Verify that the network holds exactly what was loaded, and that the run will not write over it."""
        if self._loaded is None:
            raise ConfigError(
                'DeformUpgradeHook: no checkpoint was loaded, and an upgrade starts from a trained '
                'baseline; set load_from, or take the hook out to train from scratch'
            )
        if not runner._resume:
            check_offset_rates(runner.cfg)
            if runner._load_from:
                refuse_to_overwrite(runner._load_from, runner.work_dir, runner.cfg, checkpoint_hooks(runner))
            _warn_of_a_long_warm_up(runner)
        network = whole_state_dict(runner)
        changed = [key for key, value in self._loaded.items() if not torch.equal(network[key], value.to(network[key]))]
        if changed:
            raise CheckpointError(
                f'the network does not hold the loaded values at {listed(changed, 5)}: something has changed it since. Give '
                'the checkpoint as load_from: what runner.load_checkpoint loads, runner.train initialises anew'
            )
        self._loaded = None  # frees the copy
        for hook in runner.hooks:
            if 'MeanTeacherHook' in (kind.__name__ for kind in type(hook).__mro__):
                _keep_the_teacher(hook)
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        limit = StepLimit(bare_network(runner), optimizer, self.max_step)
        self._limit = None if limit.done else limit

    def before_train_epoch(self, runner) -> None:
        """Score the untouched upgrade once, after every hook's ``before_train``."""
        if not (self._untouched and self.val_before_train and runner.iter == 0 and runner.val_loop is not None):
            return
        self._untouched = False
        runner.logger.info('Validating the upgraded network before its first step.')
        schedulers, runner.param_schedulers = runner.param_schedulers, []  # a plateau is one of the training's scores
        with kept_random_state():
            runner.val_loop.run()
        runner.param_schedulers = schedulers
        self.provenance['before_training'] = scores = numbers_in(self._scores)
        runner.logger.info(
            'Before its first step the upgrade scores, as the baseline does: '
            + (
                ', '.join(f'{key} {value:.4f}' for key, value in scores.items())
                or 'nothing, since its evaluator gave no number'
            )
        )

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Run a compiled network uncompiled while steps are measured, which is for two iterations."""
        if self._limit is not None:
            run_uncompiled(True)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Lower the rates of layers whose offsets the first step has moved too far."""
        if self._limit is None:
            return
        run_uncompiled(False)
        lowered = self._limit.apply()
        if lowered and runner.iter == 1:
            _shorten_in_averages(runner)
        for name, (step, factor) in lowered.items():
            runner.logger.info(
                f'{name}: one step of Adam moves its offsets by {step:.2g} pixels, expected at most {step * factor:.2g} '
                f"(DeformUpgradeHook(max_step={self.max_step:g}) and the map's size): its rate is {factor:.2g} times that of "
                'the config, from the first step on'
            )
        if self._limit.done:
            self._limit = None

    def before_val_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Record where the layers look in the first batch of a validation."""
        if batch_idx == 0 and runner.iter != 1:  # whose only step is not measured yet, and may be shortened
            self._recorder = OffsetRecorder(bare_network(runner)).__enter__()

    def after_val_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Warn, once a layer, of taps that have left the map: what they read is zero."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        recorder.close()
        for name, record in recorder.records.items():
            left = share_that_left(record)
            if left > _LEFT and name not in self._warned:
                self._warned.add(name)
                height, width = record.size
                runner.logger.warning(
                    f'{name}: the offsets have led {100 * left:.0f} % of its taps out of its map of {height}x{width}, where '
                    'they read zeros; expected few. Lower the learning rate of the offsets '
                    '(optim_wrapper.offset_optimizer.lr, --offset-lr), and compare on validation. Where OffsetLoggerHook '
                    'finds few of them in training, the statistics of batch norms have not settled: train longer first'
                )

    def after_val_epoch(self, runner, metrics: dict[str, Any] | None = None) -> None:
        """Keep the metrics: not every validation loop returns them."""
        self._scores = metrics or {}

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Record the upgrade's provenance in what is saved, and keep that readable for the safe reader."""
        if self.provenance:
            checkpoint['meta'][META_KEY] = dict(self.provenance)
        state = checkpoint['state_dict']
        for key in [key for key, value in state.items() if isinstance(value, torch.Tensor) and vars(value)]:
            state[key] = state[key].detach()  # without the mark that FSDP leaves on its tensors, and pickles


def _shorten_in_averages(runner) -> None:
    """After the second iteration: averages of weights began with a copy of the first step, which was too long."""
    for hook in runner.hooks:
        average: Any = getattr(hook, 'ema_model', None)
        if average is not None:
            layers = zip(
                upgraded_layers(average.module).values(), upgraded_layers(hook.src_model).values(), strict=True
            )
            for averaged, trained in layers:
                averaged.conv_offset.load_state_dict(trained.conv_offset.state_dict())


def _keep_the_teacher(hook: Any) -> None:
    """Have mmdet's ``MeanTeacherHook`` keep the loaded teacher, and of it to the bit what the student does not train."""
    update = hook.momentum_update

    def momentum_update(model: Any, momentum: float) -> None:
        pairs = zip(model.student.parameters(), model.teacher.parameters(), strict=True)
        frozen = [(teacher, teacher.clone()) for student, teacher in pairs if not student.requires_grad]
        update(model, momentum)
        for teacher, value in frozen:  # their mean differs in the last digit even where they are equal
            teacher.data.copy_(value)

    def before_train(runner) -> None:  # mmdet's begins with a copy of the student
        runner.logger.info('MeanTeacherHook: the teacher is the one that was loaded, and no copy of the student.')

    hook.before_train, hook.momentum_update = before_train, momentum_update


def _fitted(runner, checkpoint: Mapping[str, Any]) -> Imported:
    network = whole_state_dict(runner)
    if not runner._resume:
        return fit_baseline(import_checkpoint(checkpoint, network), bare_network(runner), network)
    given = Imported(OWN_NAMES, clean_state_dict(checkpoint['state_dict']))  # never imported: it is the network's own
    given = fit_baseline(given, bare_network(runner), network)
    if given.added:
        raise CheckpointError(
            f'resume: the checkpoint has no {listed(given.added, 2)}, so it is a baseline and not an interrupted upgrade, or '
            f'one of other targets; to resume the run of {runner.work_dir}, set load_from=None, or call tools/train.py with '
            '--resume; to start anew, set resume=False'
        )
    if missing := lacking_for_resume(checkpoint):
        raise CheckpointError(
            f'resume: the checkpoint has no {", ".join(missing)}, so it is a finished network and '
            'not an interrupted run; give it as load_from, with resume=False'
        )
    check_optimizer_state(runner, checkpoint)
    return given


def _warn_of_a_long_warm_up(runner) -> None:
    """Of one that the baseline's larger data had room for; a config does not say how many iterations an epoch has."""
    for scheduler in listed_schedulers(runner.cfg.get('param_scheduler')):
        end: Any = scheduler.get('end')
        if scheduler.get('by_epoch', True) or not warms_up(scheduler):
            continue
        if is_count(end) and 0 < runner.max_iters < 2 * end:
            runner.logger.warning(
                f'The warm-up lasts {end} iterations and the training {runner.max_iters}, so the rates that were planned are '
                f'reached late or never: set end={max(1, runner.max_iters // 10)} in param_scheduler'
            )


def _provenance(runner) -> dict[str, Any]:
    from .. import __version__

    path = runner._load_from and local_path(runner._load_from)  # None where a program calls runner.load_checkpoint
    return {
        'baseline': path and os.path.basename(path),
        'baseline_sha256': file_sha256(path) if path and is_main_process() else None,
        'layers': {name: layer.deform_groups for name, layer in upgraded_layers(bare_network(runner)).items()},
        'versions': {'mmdeform_upgrade': __version__, 'torch': str(torch.__version__)},
    }
