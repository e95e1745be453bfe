# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The network of a run without what is wrapped around it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from mmengine.hooks import CheckpointHook
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from ..layers import unwrapped_name


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


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers under the names that they have in a checkpoint."""
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        yield unwrapped_name(name), value
