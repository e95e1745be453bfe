# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What the hooks share of a run: its network without what is wrapped around it, its random numbers, and its end."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import find_latest_checkpoint
from torch import Tensor, nn

from ..errors import TrainingError, listed
from ..layers import unwrapped_name, upgraded_layers

TAME_OFFSETS = (
    'Lower the learning rate of the offsets (optim_wrapper.offset_optimizer.lr; without one, '
    'optim_wrapper.paramwise_cfg.custom_keys=dict(conv_offset=dict(lr_mult=0.1))), clip gradients '
    '(optim_wrapper.clip_grad=dict(max_norm=35)), or warm up longer.'
)


def bare_network(runner) -> nn.Module:
    """The network without distributed wrappers and test-time augmentation, whose keys checkpoints have."""
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def checkpoint_hooks(runner) -> list[CheckpointHook]:
    """What writes the checkpoints of a run."""
    return [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]


def whole_state_dict(runner) -> dict[str, Tensor]:
    """The network's state dict, also where its own tensors are shards (FSDP)."""
    model = runner.model
    if is_model_wrapper(model):
        from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType

        if isinstance(model, FullyShardedDataParallel):
            whole = FullStateDictConfig(offload_to_cpu=False, rank0_only=False)
            with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT, whole):
                return model.state_dict()
    return bare_network(runner).state_dict()


def numbers_in(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The scores among what an evaluator gives, which may also be texts and arrays."""
    return {key: float(value) for key, value in metrics.items() if isinstance(value, (int, float, np.number))}


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers under the names that they have in a checkpoint."""
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        yield unwrapped_name(name), value


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Whatever is drawn inside does not move the random state outside."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        yield
    random.setstate(python)
    np.random.set_state(numpy)


def stop_for_weights(runner, iteration: int, broken: list[str]) -> None:
    """End a run whose weights ``broken`` are not finite."""
    layers = [
        layer for layer in upgraded_layers(bare_network(runner)) if any(k.startswith(f'{layer}.') for k in broken)
    ]
    rest = [key for key in broken if not any(key.startswith(f'{layer}.') for layer in layers)]
    titled = (('of the upgraded layers', layers), ('of others', rest))
    found = '; '.join(f'{title} {listed(names, 5)}' for title, names in titled if names)
    advice = 'OffsetLoggerHook(interval=1) names the layer whose offsets break first.'
    stop(runner, iteration, f'weights are not finite: {found}. {TAME_OFFSETS} {advice}')


def stop(runner, iteration: int, problem: str) -> None:
    """End a run, and say what it leaves to resume from."""
    last = find_latest_checkpoint(runner.work_dir)
    left = f'The last checkpoint is {last}.' if last else f'What was saved stays in {runner.work_dir}.'
    raise TrainingError(f'iteration {iteration}: {problem} {left}')
