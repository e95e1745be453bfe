# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""``CPUHeadHook``: what a one-stage head does after its convolutions, on the CPU.

Registered on import: ``custom_imports = dict(imports=['benchmarks.compare.cpu_head'])``.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.structures import InstanceData

from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.mm.network import bare_network


@HOOKS.register_module()
class CPUHeadHook(Hook):
    """Computes a head's losses and its boxes on the CPU, by the head's own code.

    An anchor head matches and picks picture by picture and waits for the GPU about a hundred times a step. One training
    alone hardly notices. Several on one GPU without MPS take turns, and every wait is for a turn: then it is faster to
    wait once, for all maps. The results are the same.

    Args:
        part: dotted name of the head.

    Raises (from the runner's calls):
        ConfigError: the network has no such part, or it is no dense head.
    """

    priority = 'HIGHEST'

    def __init__(self, part: str = 'bbox_head'):
        self.part = part

    def before_run(self, runner) -> None:
        """Exchange the head's ``loss_by_feat`` and ``predict_by_feat``."""
        head: Any = dict(bare_network(runner).named_modules()).get(self.part)
        if not (hasattr(head, 'loss_by_feat') and hasattr(head, 'predict_by_feat')):
            raise ConfigError(
                f'CPUHeadHook: {self.part!r} is no part of the network with loss_by_feat and '
                'predict_by_feat, as dense heads have: set part=...'
            )
        head.loss_by_feat = MethodType(_loss_by_feat, head)
        head.predict_by_feat = MethodType(_predict_by_feat, head)


def _loss_by_feat(head: Any, *args: Any, **kwargs: Any) -> Any:
    return type(head).loss_by_feat(head, *_on_cpu(args), **_on_cpu(kwargs))


def _predict_by_feat(head: Any, *args: Any, **kwargs: Any) -> Any:
    return type(head).predict_by_feat(head, *_on_cpu(args), **_on_cpu(kwargs))


def _on_cpu(value: Any) -> Any:
    """The same lists, dicts and instances with every tensor on the CPU, brought there in one copy a type."""
    found: List[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    _mapped(keep, value)
    kinds: Dict[Tuple[torch.device, torch.dtype], List[torch.Tensor]] = {}
    for tensor in found:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    copies = {
        id(tensor): copy for tensors in kinds.values() for tensor, copy in zip(tensors, _copied(tensors), strict=True)
    }
    return _mapped(lambda tensor: copies[id(tensor)], value)


def _mapped(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, InstanceData):
        return value.new(**{key: _mapped(change, item) for key, item in value.items()})
    if type(value) in (list, tuple):
        return type(value)([_mapped(change, item) for item in value])
    if type(value) is dict:
        return {key: _mapped(change, item) for key, item in value.items()}
    return value


def _copied(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).cpu()
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]
