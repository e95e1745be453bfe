# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""``WorkDirHook``: one run a folder, checkpoints that are whole, and no validation lost in a break."""

from __future__ import annotations

from typing import Any, List, Optional

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from ...errors import ConfigError
from ...readers import remove_leftovers
from . import BACKEND, hold, release
from .randomness import kept_random_state


class WorkDirHook(Hook):
    """Keeps what a run has in its work directory from being lost.

    The main process holds the folder as long as the run goes on. Checkpoints are written whole, and the one before is
    removed afterwards (``WholeFiles``; with ``FlexibleRunner``, MMEngine offers no way to choose how). A run that is
    resumed where a validation was due first makes up for it, since the break may have cut it off: ``save_best`` would
    know nothing of it.

    ``DeformUpgradeHook`` brings it along; name it in ``custom_hooks`` for trainings without an upgrade.

    Raises (from the runner's calls):
        ConfigError: another run has the work directory.
        TrainingError: a checkpoint could not be written. Those written before stay.
    """

    priority = 'LOWEST'  # after all that sets itself up in before_train

    def __init__(self) -> None:
        self._holds = False

    def before_run(self, runner) -> None:
        """Have checkpoints written whole."""
        for hook in _checkpoint_hooks(runner):
            if (
                isinstance(runner, Runner)
                and not hook.backend_args
                and not hook.file_client_args
                and ('://' not in str(hook.out_dir or ''))
            ):
                hook.backend_args = dict(backend=BACKEND)

    def before_train(self, runner) -> None:
        """Take the folder, clear up after a killed run, and validate if that was due when it was killed."""
        self._take(runner)
        if is_main_process():
            for hook in _checkpoint_hooks(runner):
                remove_leftovers(str(hook.out_dir), '*.pth')
        if runner._resume and any(hook.save_best for hook in _checkpoint_hooks(runner)) and _validation_was_due(runner):
            runner.logger.info(
                'Validating once more where the resumed run stood, since the break may have cut that '
                'off, and save_best would know nothing of it.'
            )
            with kept_random_state():
                runner.val_loop.run()

    def after_run(self, runner) -> None:
        """Give the folder back, unless somebody else in this process took it."""
        if self._holds:
            release(runner.work_dir)

    def _take(self, runner) -> None:
        # Not in before_run, which tests have as well: those may look at a run that is still going on.
        refused: List[Optional[str]] = [None]
        if is_main_process():
            try:
                self._holds = hold(runner.work_dir)
            except ConfigError as error:
                refused = [str(error)]
        broadcast_object_list(refused)  # or the other processes would wait for the main one
        if refused[0] is not None:
            raise ConfigError(refused[0])


def _checkpoint_hooks(runner) -> List[CheckpointHook]:
    return [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]


def _validation_was_due(runner) -> bool:
    """Whether the loop validates at the place where it stands; as MMEngine's loops decide it."""
    loop: Any = runner.train_loop
    if runner.val_loop is None or not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return False
    loop._decide_current_val_interval()
    here, end = (loop.epoch, loop.max_epochs) if isinstance(loop, EpochBasedTrainLoop) else (loop.iter, loop.max_iters)
    return here > 0 and here >= loop.val_begin and (here % loop.val_interval == 0 or here == end)
