# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Steps of their own for the offsets, beside any optimizer for everything else; needs nothing but PyTorch.

The gradient of an offset says where to look, not how far to go: its size depends on the features around it. Steps of
SGD, sized for weights, move offsets by a twentieth of a pixel in a short fine-tune; Adam's do not depend on that size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.optim import Adam, Optimizer

from ..errors import UpgradeError
from ..layers import upgraded_layers

OFFSET_LR = 2e-3
_ALIKE = ('maximize', 'foreach', 'capturable', 'differentiable', 'fused')  # what one of the two has, both need


class OffsetOptimizer(Optimizer):
    """Two optimizers in one: Adam for the offsets, ``base`` for everything else.

        others, offsets = split_offsets(model)
        optimizer = OffsetOptimizer(torch.optim.SGD(others, lr=0.01, momentum=0.9), offsets, lr=2e-3)

    Its groups are those of ``base`` followed by those of the offsets, flagged ``offsets=True``; states, schedulers,
    gradient scalers and clipping see one optimizer. The rate of the offsets follows the schedule's shape: it is ``lr``
    times the rate of the first other group over that group's own peak, whatever a scheduler writes (an absolute
    ``eta_min`` or ``max_lr`` is meant for the weights). The peak is the rate that ``base`` has when it comes here, or
    ``OneCycleLR``'s ``max_lr``: with a schedule that rises above its start, build ``base`` with the highest rate.

    Args:
        base: optimizer of everything else, any ``torch.optim.Optimizer``.
        offsets: parameters of the offset branches, or an optimizer of them, whose rates then stand for ``lr``.
        lr: learning rate of the offsets at the schedule's peak.
        **adam: other settings of ``torch.optim.Adam``.

    Raises:
        UpgradeError: ``base`` is no optimizer, there are no offsets, or their rate is not positive.
    """

    def __init__(
        self, base: Optimizer, offsets: Iterable[Parameter] | Optimizer, lr: float = OFFSET_LR, **adam: Any
    ) -> None:
        if not isinstance(base, Optimizer):
            raise UpgradeError(f'OffsetOptimizer: base is a {type(base).__name__}, expected a torch.optim.Optimizer')
        if not isinstance(offsets, Optimizer):
            alike = {name: base.defaults[name] for name in _ALIKE if base.defaults.get(name)}
            if not (offsets := list(offsets)):
                raise UpgradeError(
                    'there are no offsets to train: upgrade the network before its optimizer is built (upgrade_), and '
                    'leave its offset branches unfrozen; under FSDP pass use_orig_params=True'
                )
            offsets = Adam(offsets, lr=_positive(lr), **{**alike, **adam})
        own = {id(p) for group in offsets.param_groups for p in group['params']}
        if twice := sum(id(p) in own for group in base.param_groups for p in group['params']):
            raise UpgradeError(
                f'{twice} parameters of offset branches are in the base optimizer, too: give it the others alone, '
                'others, offsets = split_offsets(model)'
            )
        for group in offsets.param_groups:
            group.update(offsets=True, offset_lr=_positive(group['lr']))
        if any('param_names' in group for group in base.param_groups):  # then PyTorch wants names in all groups
            for group in offsets.param_groups:
                group.setdefault('param_names', [f'conv_offset.{i}' for i in range(len(group['params']))])
        leader = next((group for group in base.param_groups if group.get('lr')), None)
        if leader is not None:
            leader['peak_lr'] = float(leader['lr'])
        self.base, self.offsets = base, offsets
        self._groups: list[dict[str, Any]] = []
        super().__init__([*base.param_groups, *offsets.param_groups], base.defaults)
        for part in (base, offsets):
            self.state.update(part.state)
            part.state = self.state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """All groups; what schedulers wrote of the offsets' rate is replaced by the schedule's shape."""
        leader = next((group for group in self._groups if 'peak_lr' in group), None)
        if leader is not None:
            for group in self._groups:
                if group.get('offsets'):
                    # OneCycleLR names a peak of its own, which a multiple of the weights' rate follows.
                    peak = leader['peak_lr'] if group.get('multiple') else leader.get('max_lr', leader['peak_lr'])
                    group['lr'] = group['offset_lr'] * leader['lr'] / peak
        return self._groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self._groups = groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer of the offsets where it says ``offsets=True``, else to the other one."""
        part = self.offsets if param_group.get('offsets') else self.base
        if not any(group is param_group for group in part.param_groups):
            part.add_param_group(param_group)
            if param_group.get('offsets'):
                param_group['offset_lr'] = param_group['lr']
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        _ = self.param_groups  # the rate
        loss = self.base.step() if closure is None else self.base.step(closure)
        self.offsets.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """State of both parts, with an entry for every parameter, as FSDP wants it where one part keeps no state."""
        for group in self._groups:
            for parameter in group['params']:
                self.state[parameter]
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another ``OffsetOptimizer`` of the same groups stopped.

        Raises:
            UpgradeError: the state is of another optimizer.
        """
        saved, own = (
            [bool(group.get('offsets')) for group in groups] for groups in (state_dict['param_groups'], self._groups)
        )
        if saved != own:
            raise UpgradeError(
                f'the optimizer state has {saved.count(False)} groups and {saved.count(True)} of offsets, this optimizer '
                f'has {own.count(False)} groups and {own.count(True)} of offsets: resume with the optim_wrapper that the '
                'state was saved with'
            )
        super().load_state_dict(state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._groups = self.__dict__.pop('param_groups')
        for part, flag in ((self.base, False), (self.offsets, True)):
            groups = [group for group in self._groups if bool(group.get('offsets')) == flag]
            part.__setstate__({'state': self.state, 'param_groups': groups})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), 'base': self.base, 'offsets': self.offsets}


def split_offsets(model: nn.Module) -> tuple[list[Parameter], list[Parameter]]:
    """The parameters of a network that train: all others, and those of its offset branches."""
    offsets = [parameter for layer in offsets_by_layer(model) for parameter in layer]
    known = {id(parameter) for parameter in offsets}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in known], offsets


def offsets_by_layer(model: nn.Module) -> list[list[Parameter]]:
    """The parameters of each offset branch that trains."""
    branches = (layer.conv_offset.parameters() for layer in upgraded_layers(model).values())
    layers = ([parameter for parameter in branch if parameter.requires_grad] for branch in branches)
    return [layer for layer in layers if layer]


def _positive(lr: Any) -> float:
    if isinstance(lr, (str, bool)) or not 0 < lr < float('inf'):
        raise UpgradeError(
            f'the learning rate of the offsets is {lr!r}, expected a positive number such as {OFFSET_LR}'
        )
    return lr
