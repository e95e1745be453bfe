# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The only registration. Everything stands in MMEngine's root registries, so that every scope finds it.

Importing it imports neither mmdet nor mmseg: what needs them (``mmdeform_upgrade.models``) is registered as a builder, and
imported when a config names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from mmengine.fileio import register_backend
from mmengine.logging import print_log
from mmengine.registry import FUNCTIONS, HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS
from mmengine.runner import CheckpointLoader
from torch import nn

from ..analysis.complexity import register_handles
from ..config import BUILDER, SCHEME, TRAIN_OFFSETS
from ..errors import ConfigError, TargetError
from ..layers import ZeroOffsetDCN
from ..offsets.training import train_offsets_
from ..targets import Targets
from ..upgrade import upgrade_
from . import mmcv_ops
from .bfloat16 import BFloat16Hook
from .guard import BACKEND, RunGuardHook, WholeFiles
from .hook import DeformUpgradeHook
from .loading import load_from_safe_reader
from .offset_logger import OffsetLoggerHook
from .offset_optimizer import OffsetOptimizerConstructor, offsets_apart


def deform_upgrade(
    base_type: Any = None, targets: Targets = 'last:3', exclude: Targets = (), deform_groups: int = 1, **kwargs: Any
) -> nn.Module:
    """Build the component that a config inherited and swap its targeted convolutions for ``ZeroOffsetDCN``.

    In a config: ``backbone=dict(type='DeformUpgrade', base_type='ResNet', targets='last:3')``. The result is an object
    of ``base_type`` itself: same class, same parameter names. Backbones, necks and heads alike.

    Args:
        base_type: the component's own ``type``.
        targets: see :func:`find_targets`; names are those inside the component.
        exclude: convolutions to leave alone.
        deform_groups: groups of channels that share offsets.
        **kwargs: all other settings of the component.

    Raises:
        ConfigError: ``base_type`` is not given or not registered.
        TargetError: no match, or a match that cannot be upgraded.
    """
    module = _build_base(BUILDER, base_type, kwargs)
    # Some backbones (Darknet) apply frozen_stages in train() only, and frozen targets must be seen now.
    module.train(module.training)
    try:
        report = upgrade_(module, targets, exclude=exclude, deform_groups=deform_groups)
    except TargetError as error:
        frozen = kwargs.get('frozen_stages')
        where = f' (frozen_stages={frozen})' if isinstance(frozen, int) and frozen >= 0 else ''
        raise TargetError(f'{BUILDER} of {type(module).__name__}{where}: {error}') from error
    print_log(f'{type(module).__name__}: {report}', logger='current')
    return module


def train_offsets(base_type: Any = None, **kwargs: Any) -> nn.Module:
    """Build the model that a config inherited and let nothing but its offset branches train.

    In a config: ``model=dict(type='TrainOffsets', base_type='SingleStageDetector', backbone=dict(type='DeformUpgrade',
    ...), ...)``. The result is an object of ``base_type`` itself, see :func:`train_offsets_`. It is done before the
    model is wrapped and its optimizer is built, so neither ever sees the other parameters train.

    Args:
        base_type: the model's own ``type``.
        **kwargs: all other settings of the model.

    Raises:
        ConfigError: ``base_type`` is not given or not registered.
        TargetError: no offsets that could train.
    """
    module = _build_base(TRAIN_OFFSETS, base_type, kwargs)
    names = train_offsets_(module)
    print_log(f'{TRAIN_OFFSETS}: the offsets of {len(names)} layers train, and nothing else', logger='current')
    return module


def _build_base(builder: str, base_type: Any, settings: Mapping[str, Any]) -> nn.Module:
    """What a builder's place in the config held before."""
    if base_type is None:
        raise ConfigError(
            f'{builder} needs base_type, the type that the component had before: '
            f"dict(type='{builder}', base_type='ResNet', ...)"
        )
    with MODELS.switch_scope_and_registry(None) as registry:
        known = not isinstance(base_type, str)
        with suppress(RuntimeError):  # the registry tries names as modules' contents, too
            known = known or registry.get(base_type) is not None
        if not known:
            raise ConfigError(
                f'{builder}: base_type {base_type!r} is not registered in the scope {registry.scope!r}; '
                "set default_scope in the config, or name it with its scope, as in 'mmdet.ResNet'"
            )
    return MODELS.build(dict(type=base_type, **settings))


def _built_from(file: str, name: str) -> Callable[..., Any]:
    def build(**settings: Any) -> Any:
        return getattr(import_module(f'..models.{file}', __package__), name)(**settings)

    return build


MODELS.register_module(name=BUILDER, module=deform_upgrade)
MODELS.register_module(name=TRAIN_OFFSETS, module=train_offsets)
MODELS.register_module(module=ZeroOffsetDCN)
for _file, _name in (('ssd', 'WideSSDNeck'), ('ssd', 'PredictableSSDHead'), ('aspp', 'ProjectedASPPHead')):
    MODELS.register_module(name=_name, module=_built_from(_file, _name))
TRANSFORMS.register_module(name='ResizeByDirection', module=_built_from('ssd', 'ResizeByDirection'))
for _hook in (BFloat16Hook, DeformUpgradeHook, OffsetLoggerHook, RunGuardHook):
    HOOKS.register_module(module=_hook)
OPTIM_WRAPPER_CONSTRUCTORS.register_module(module=OffsetOptimizerConstructor)
FUNCTIONS.register_module(module=offsets_apart)
CheckpointLoader.register_scheme(SCHEME, load_from_safe_reader)
register_backend(BACKEND, WholeFiles)
register_handles()
mmcv_ops.stand_in()
