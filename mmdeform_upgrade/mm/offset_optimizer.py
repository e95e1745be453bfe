# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The offsets' optimizer, in a config: a constructor around the one that the baseline has."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from ..config.rates import idle_rules
from ..errors import ConfigError, listed
from ..layers import OffsetBranch
from ..offsets.optimizer import OFFSET_LR, OffsetOptimizer, offsets_by_layer, split_offsets

_OF_LAYERWISE_DECAY = {'decay_rate', 'layer_decay_rate', 'num_layers'}


class OffsetOptimizerConstructor:
    """Builds the baseline's optimizer without the offset branches, and an optimizer of their own beside it.

        optim_wrapper = dict(constructor='OffsetOptimizerConstructor', offset_optimizer=dict(type='Adam', lr=0.002))

    Args:
        optim_wrapper_cfg: the config's ``optim_wrapper``. ``offset_optimizer`` holds the settings of the offsets'
            optimizer; without a ``type`` it is a second one of the baseline's, whose rate is that of ``optimizer.lr``
            times ``lr_mult``, which defaults to ``paramwise_cfg.dcn_offset_lr_mult``. ``base_constructor`` names the
            constructor for everything else, MMEngine's own unless given.
        paramwise_cfg: goes to that constructor, whose rules then do not see the offsets.

    Raises:
        ConfigError: there is no rate to multiply, or settings of a constructor that is not named; when called: the network has no offsets that train.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self._wrapper = dict(optim_wrapper_cfg)
        optimizer = self._wrapper.pop('optimizer')
        given = self._wrapper.pop('offset_optimizer', {})
        self._offsets = _offset_settings(given, optimizer, paramwise_cfg or {})
        if idle := idle_rules({**optim_wrapper_cfg, 'paramwise_cfg': paramwise_cfg}):
            print_log(
                f'paramwise_cfg.{listed(idle)} does not change the rate of the offsets, which have an optimizer of their '
                'own: set optim_wrapper.offset_optimizer.lr',
                logger='current',
                level=logging.WARNING,
            )
        self._multiple = not {'type', 'lr'} & given.keys()
        base = self._wrapper.pop('base_constructor', None)
        if base is None and (lost := _OF_LAYERWISE_DECAY & (paramwise_cfg or {}).keys()):
            raise ConfigError(
                f'optim_wrapper.paramwise_cfg has {listed(sorted(lost))}, of a constructor that decays rates by layer, and '
                'no base_constructor: name the constructor of the baseline there (DefaultOptimWrapperConstructor, if it had '
                'none)'
            )
        base = base or 'DefaultOptimWrapperConstructor'
        self._base = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(
                type=base,
                optim_wrapper_cfg=dict(type='OptimWrapper', optimizer=optimizer),
                paramwise_cfg=copy.deepcopy(paramwise_cfg),
            )
        )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """The optimizer wrapper of a network."""
        model = getattr(model, 'module', model)
        others, offsets = split_offsets(model)
        if not offsets:
            raise ConfigError(
                'OffsetOptimizerConstructor: the network has no offset branches that train: upgrade a part of it '
                "(type='DeformUpgrade'), or take optim_wrapper.constructor out; under FSDP set use_orig_params=True"
            )
        base, known = self._base(model).optimizer, {id(p) for p in offsets}
        for group in base.param_groups:
            group['params'] = [p for p in group['params'] if others and id(p) not in known]
        for parameter in offsets:
            base.state.pop(parameter, None)  # Adagrad's begins when it is built
        # Where nothing else trains, a group of no parameter has the schedule that the offsets follow.
        base.param_groups = [group for group in base.param_groups if group['params']] or base.param_groups[:1]
        # A group of every layer may get a rate of its own, see StepLimit.
        layers = [{'params': layer} for layer in offsets_by_layer(model)]
        groups = [{'params': offsets, 'multiple': True}] if self._multiple else layers
        own = OPTIMIZERS.build(dict(self._offsets, params=groups))
        wrapper = {'type': 'OptimWrapper', **self._wrapper}
        return OPTIM_WRAPPERS.build(wrapper, default_args=dict(optimizer=OffsetOptimizer(base, own)))


def offsets_apart(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy`` for a run that saves its optimizer: PyTorch shards and saves parameters of one unit
    together, which have to have one kind of optimizer state."""
    return recurse or isinstance(module, OffsetBranch)


def _offset_settings(
    given: Mapping[str, Any], optimizer: Mapping[str, Any], paramwise: Mapping[str, Any]
) -> dict[str, Any]:
    if 'type' in given:
        return {'lr': OFFSET_LR, **given}
    if 'lr' not in optimizer:
        raise ConfigError('optim_wrapper.optimizer has no lr that offset_optimizer.lr_mult could multiply: give it one')
    settings = dict(given)
    lr_mult = settings.pop('lr_mult', paramwise.get('dcn_offset_lr_mult', 1.0))
    return {**optimizer, 'lr': optimizer['lr'] * lr_mult, **settings}
