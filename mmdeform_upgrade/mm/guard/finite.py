# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""``FiniteCheckHook``: no run goes on, and no checkpoint is written, with weights that are no numbers."""

from __future__ import annotations

from typing import Any, FrozenSet, Iterable, List, Optional, Sequence, Tuple

import torch
from mmengine.hooks import Hook
from torch import Tensor

from ...errors import ConfigError, TrainingError
from ...layers import upgraded_layers
from ..network import bare_network, named_tensors
from . import last_saved

CALMER = (
    'Lower the learning rate of the offsets (optim_wrapper.paramwise_cfg=dict(custom_keys=dict('
    'conv_offset=dict(lr_mult=0.1)))), clip gradients (optim_wrapper.clip_grad=dict(max_norm=35)), or warm up '
    'longer.'
)
_SHOWN = 5


class FiniteCheckHook(Hook):
    """Stops a run whose weights are not finite, before they are saved over those that were.

    Each loss is looked at on its device, without waiting for it; the outcome and the weights are read every
    ``interval`` iterations, before a validation, and before each checkpoint. A loss that is not finite while the
    weights are, which mixed precision may bring and skip, is a warning; it is an error where all of an interval are.

    ``DeformUpgradeHook`` brings it along; name it in ``custom_hooks`` for trainings without an upgrade.

    Args:
        interval: iterations from one look to the next.

    Raises (from the runner's calls):
        TrainingError: weights, or all losses of an interval, are not finite. The checkpoints written before stay.
    """

    priority = 'NORMAL'  # after the optimizer's step, before CheckpointHook

    def __init__(self, interval: int = 50):
        if interval < 1:
            raise ConfigError(f'FiniteCheckHook: interval is {interval}; expected 1 or more')
        self.interval = interval
        self._given: FrozenSet[str] = frozenset()
        self._iteration = self._seen = 0
        self._bad: Optional[Tensor] = None
        self._first: Optional[Tensor] = None

    def before_train(self, runner) -> None:
        """Some networks hold an infinity from the start, as the mask of an attention."""
        self._given = frozenset(_not_finite(named_tensors(bare_network(runner))))
        self._iteration = runner.iter
        self._start_counting()

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None) -> None:
        """Count the losses that are not finite, and look at them now and then."""
        loss = (outputs or {}).get('loss')
        self._seen, self._iteration = self._seen + 1, runner.iter + 1
        if isinstance(loss, Tensor):
            bad = (~torch.isfinite(loss.detach())).any().long()
            self._bad = bad if self._bad is None else self._bad + bad
            here = bad * self._iteration
            self._first = here if self._first is None else torch.where(self._first > 0, self._first, here)
        if self.every_n_train_iters(runner, self.interval):
            self._look(runner)

    def before_val(self, runner) -> None:
        """Score nothing that is no network any more."""
        if self._seen:
            self._look(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Refuse to save weights that are not finite."""
        for part in ('state_dict', 'ema_state_dict'):
            self._refuse(_not_finite((checkpoint.get(part) or {}).items()), runner)

    def _start_counting(self) -> None:
        self._seen, self._bad, self._first = 0, None, None

    def _look(self, runner) -> None:
        self._refuse(_not_finite(named_tensors(bare_network(runner))), runner)
        bad = int(self._bad) if self._bad is not None else 0
        if bad and bad == self._seen and bad >= self.interval:
            raise TrainingError(
                f'iteration {self._iteration}: not one loss of the last {bad} iterations is finite, '
                f'and the weights are. {CALMER} With mixed precision, try bfloat16. {kept(runner)}'
            )
        if bad:
            runner.logger.warning(
                f'{bad} of the last {self._seen} losses were not finite, the first at iteration '
                f'{int(self._first)}; the weights still are.'
            )  # type: ignore[arg-type]
        self._start_counting()

    def _refuse(self, names: Sequence[str], runner) -> None:
        broken = [name for name in names if name not in self._given]
        if not broken:
            return
        layers = upgraded_layers(bare_network(runner))
        own = [name for name in layers if any(key.startswith(f'{name}.') for key in broken)]
        rest = [key for key in broken if not any(key.startswith(f'{name}.') for name in own)]
        text = '; '.join(
            f'{title} {_listed(names)}'
            for title, names in (('of the upgraded layers', own), ('of others', rest))
            if names
        )
        first = int(self._first) if self._first is not None else 0
        since = f' The first loss that was not finite is that of iteration {first}.' if first else ''
        raise TrainingError(
            f'iteration {self._iteration}: weights are not finite: {text}.{since} {CALMER} '
            f'OffsetLoggerHook(interval=1) names the layer whose offsets break first. {kept(runner)}'
        )


def kept(runner) -> str:
    """What a run that stops leaves to go on from."""
    last = last_saved(runner.work_dir)
    return f'The last checkpoint is {last}.' if last else f'What was saved stays in {runner.work_dir}.'


def _not_finite(tensors: Iterable[Tuple[str, Any]]) -> List[str]:
    """Names of floating-point tensors with anything but finite numbers; one wait for the device."""
    floats = [(name, value) for name, value in tensors if isinstance(value, Tensor) and value.is_floating_point()]
    if not floats:
        return []
    finite = torch.stack([torch.isfinite(value.detach()).all().to(floats[0][1].device) for _, value in floats])
    return [name for (name, _), good in zip(floats, finite.tolist(), strict=True) if not good]


def _listed(names: Sequence[str]) -> str:
    return ', '.join(names[:_SHOWN]) + (f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else '')
