# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""``DeformUpgradeHook``: owns the checkpoint of an upgrade, never the network."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from ..checkpoint import (
    StateDict,
    clean_state_dict,
    file_sha256,
    fit_baseline,
    import_checkpoint,
    is_offset_key,
    remap_state_dict,
)
from ..errors import CheckpointError, ConfigError
from ..importers import OWN_NAMES, Imported
from ..layers import upgraded_layers
from .guard import find_resumable
from .guard.exact_resume import ExactResumeHook
from .guard.finite import FiniteCheckHook
from .guard.randomness import kept_random_state
from .guard.work_dir import WorkDirHook
from .loading import AS_IT_IS, SCHEME, local_path
from .network import bare_network

META_KEY = 'deform_upgrade'


class DeformUpgradeHook(Hook):
    """Loads a trained baseline into the upgraded network, verifies it, scores it, and records where it came from.

    The network itself is built by the config (``type='DeformUpgrade'`` or a ``dcn`` switch); see
    ``mmdeform_upgrade.mm.plugin``. Checkpoints are read without running anything that they hold.

    Args:
        val_before_train: validate the untouched upgrade before the first step. The score is logged, stored in every
            checkpoint's ``meta['deform_upgrade']`` and counts for ``save_best``, so that the best checkpoint of a run
            is never below the baseline. The random state of the training is not touched by it.
        exact_resume: register an ``ExactResumeHook`` as well, which makes a resumed training go on bit for bit.
        finite_interval: iterations between two looks of the ``FiniteCheckHook`` that is registered as well and stops
            a run whose weights are no numbers; None leaves it out. A ``WorkDirHook`` is registered in any case.

    Raises (from the runner's calls):
        ConfigError: the network has no ``ZeroOffsetDCN``, or there is nothing to load.
        CheckpointError: the checkpoint does not fit; every key that is missing, unexpected or of another shape is
            named, and every setting that would change a foreign baseline's numbers.
    """

    # Before EMAHook and CheckpointHook, which work on what this hook makes of the checkpoint.
    priority = 'VERY_HIGH'

    def __init__(self, val_before_train: bool = True, exact_resume: bool = True, finite_interval: Optional[int] = 50):
        self.val_before_train = val_before_train
        self.companions: List[Hook] = [WorkDirHook()]
        if exact_resume:
            self.companions.append(ExactResumeHook())
        if finite_interval is not None:
            self.companions.append(FiniteCheckHook(finite_interval))
        self.provenance: Dict[str, Any] = {}
        self._loaded: Optional[StateDict] = None
        self._added: Tuple[str, ...] = ()  # only what this upgrade made has to start at zero
        self._fresh = False

    def before_run(self, runner) -> None:
        """Check that there is something to do, and have MMEngine read through the safe reader."""
        self._add_companions(runner)
        if not upgraded_layers(bare_network(runner)):
            raise ConfigError(
                'DeformUpgradeHook: the model has no ZeroOffsetDCN; set model.backbone=dict('
                "type='DeformUpgrade', base_type=..., targets=...), or take the hook out"
            )
        path = runner._load_from
        if runner._resume and path is None:
            path = find_resumable(runner.work_dir)
            if path is None:
                raise ConfigError(
                    f'resume: there is no checkpoint in {runner.work_dir}, and training would start from '
                    'random weights; run without resume, with load_from the baseline'
                )
        if path is not None:
            runner._load_from = AS_IT_IS + local_path(path)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Import a baseline and make it complete with zero offsets; take an upgraded checkpoint as it is."""
        self._add_companions(runner)
        if not str(runner._load_from).startswith((AS_IT_IS, SCHEME)):
            runner.logger.warning(
                'DeformUpgradeHook: FlexibleRunner reads checkpoints before any hook is asked, and '
                f"did not read this one safely; write load_from='{SCHEME}PATH', or use "
                'tools/train.py of this package.'
            )
        network = _state_dict(runner)
        try:
            if runner._resume:
                given = _resumed(checkpoint, network)
            else:
                given = fit_baseline(import_checkpoint(checkpoint, network), bare_network(runner), network)
        except CheckpointError as error:
            raise CheckpointError(f'{str(runner._load_from).rpartition("://")[2]}: {error}') from error
        checkpoint['state_dict'] = given.state_dict
        self._loaded, self._added, self._fresh = given.state_dict, given.added, bool(given.added)
        self.provenance = dict(_meta(checkpoint).get(META_KEY) or {})
        if self._fresh:
            self.provenance = {**self._describe(runner), 'imported': given.summary()}
            if given.format != OWN_NAMES:
                runner.logger.info(f'Imported {given}')
            runner.logger.info(
                f'Baseline of {given.summary()["tensors"]} tensors fits; {len(given.added)} offset '
                'tensors added as zeros.'
            )
        elif not runner._resume:
            runner.logger.info('The checkpoint is upgraded already and was loaded as it is.')

    def before_train(self, runner) -> None:
        """Verify that the network holds exactly what was loaded."""
        if self._loaded is None:
            raise ConfigError(
                'DeformUpgradeHook: no checkpoint was loaded, and an upgrade starts from a trained '
                'baseline; set load_from, or take the hook out to train from scratch'
            )
        network = _state_dict(runner)
        changed = [key for key, value in self._loaded.items() if not _same(network[key], value)]
        if changed:
            raise CheckpointError('the network does not hold the loaded values at ' + ', '.join(changed[:20]))
        if self._fresh and (moved := [key for key in self._added if network[key].any()]):
            raise CheckpointError('offsets are not zero before the first step: ' + ', '.join(moved))
        self._loaded = None  # frees the copy

    def before_train_epoch(self, runner) -> None:
        """Score the untouched upgrade once, after every hook's ``before_train``."""
        if not (self._fresh and self.val_before_train and runner.iter == 0 and runner.val_loop is not None):
            return
        self._fresh = False
        runner.logger.info('Validating the upgraded network before its first step.')
        with kept_random_state():
            metrics = runner.val_loop.run()
        self.provenance['before_training'] = _numbers(metrics)
        runner.logger.info(
            'Before its first step the upgrade scores, as the baseline does: '
            + ', '.join(f'{key} {value:.4f}' for key, value in _numbers(metrics).items())
        )

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Record the upgrade's provenance in what is saved, and keep that readable for the safe reader."""
        if self.provenance:
            checkpoint['meta'][META_KEY] = dict(self.provenance)
        state = checkpoint['state_dict']
        for key in [key for key, value in state.items() if isinstance(value, torch.Tensor) and vars(value)]:
            state[key] = state[key].detach()  # without the mark that FSDP leaves on its tensors, and pickles

    def _add_companions(self, runner) -> None:
        # Here, since only the runner's own hooks are called; FlexibleRunner loads before it calls before_run.
        for companion in self.companions:
            if not any(type(hook) is type(companion) for hook in runner.hooks):
                runner.register_hook(companion)

    def _describe(self, runner) -> Dict[str, Any]:
        from .. import __version__

        path = str(runner._load_from).rpartition('://')[2] if runner._load_from else None
        return {
            'baseline': os.path.basename(path) if path else None,
            'baseline_sha256': file_sha256(path) if path and is_main_process() else None,
            'layers': {name: layer.deform_groups for name, layer in upgraded_layers(bare_network(runner)).items()},
            'versions': {'mmdeform_upgrade': __version__, 'torch': str(torch.__version__)},
        }


def _resumed(checkpoint: Dict[str, Any], network: StateDict) -> Imported:
    # Never imported: what was interrupted is the network's own.
    given = clean_state_dict(checkpoint['state_dict'])
    if any(is_offset_key(key) for key in network if key not in given):
        raise CheckpointError(
            'resume: the checkpoint has no offsets, so it is a baseline and not an interrupted '
            'upgrade; give it as load_from, with resume=False'
        )
    missing = [key for key in ('epoch', 'iter') if key not in _meta(checkpoint)]
    missing += [] if 'message_hub' in checkpoint else ['message_hub']
    if missing:
        raise CheckpointError(
            f'resume: the checkpoint has no {", ".join(missing)}, so it is a finished network and '
            'not an interrupted run; give it as load_from, with resume=False'
        )
    return Imported(OWN_NAMES, remap_state_dict(given, network))


def _meta(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = checkpoint.get('meta')
    return meta if isinstance(meta, Mapping) else {}


def _state_dict(runner) -> StateDict:
    model = runner.model
    if is_model_wrapper(model):
        from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType

        if isinstance(model, FullyShardedDataParallel):  # the network's own tensors are shards
            whole = FullStateDictConfig(offload_to_cpu=False, rank0_only=False)
            with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT, whole):
                return model.state_dict()
    return bare_network(runner).state_dict()


def _same(held: torch.Tensor, loaded: torch.Tensor) -> bool:
    return torch.equal(held, loaded.to(device=held.device, dtype=held.dtype))


def _numbers(metrics: Mapping[str, Any]) -> Dict[str, float]:
    return {key: float(value) for key, value in metrics.items() if isinstance(value, (int, float, np.number))}
