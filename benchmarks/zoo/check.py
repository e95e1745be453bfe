# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""One config: its model built twice, plain and upgraded through the config, and all outputs compared."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Tuple

import torch
from torch import nn

from mmdeform_upgrade.checkpoint import remap_state_dict
from mmdeform_upgrade.config import upgrade_config
from mmdeform_upgrade.config.settings import type_name
from mmdeform_upgrade.errors import UpgradeError
from mmdeform_upgrade.layers import upgraded_layers
from mmdeform_upgrade.mm.preflight import build_network

from . import network, reasons, weights
from .configs import BACKBONES, NECKS, component, load_config, parts_called, repository_of

if TYPE_CHECKING:
    from mmengine.config import Config

COUNT = 3  # upgraded layers a part, or as many as it has
TOLERANCE = 1e-5  # of the deformable path, in float32
TOLERANCE64 = 1e-10  # in float64, where float32's rounding is not enough to decide
MOVED = 1e-4  # least change that moved offsets have to make

Record = Dict[str, Any]
Build = Callable[['Config'], nn.Module]


class Unchecked(Exception):
    """There is nothing to compare, for one of the reasons that are not this package's."""

    def __init__(self, reason: str, detail: str = ''):
        super().__init__(f'{reason}: {detail}')
        self.reason, self.detail = reason, detail


def check_config(name: str) -> Record:
    """Check one config of the zoo; never raises, whatever the config does.

    Args:
        name: ``LIBRARY/PATH`` of an installed config.

    Returns:
        dict: ``config`` and ``seconds``; as far as they are known ``model``, ``backbone``, ``convs`` (classes and
        counts), ``alone`` (why backbone and neck were built without the rest of the model, if they were), ``neck``
        (why it was left out, if it was) and ``parts``; where the backbone was not upgraded or not rightly, ``reason``
        and ``detail``. An entry of ``parts`` has ``part``, ``layers``, ``of`` (how many layers the network has got, if
        a wrapper builds the part several times), and the largest difference of any output, relative to that output's
        largest value: ``same`` with ``backend='auto'``, ``sampled`` with the deformable path forced, ``sampled64`` in
        float64 (where float32 does not decide), ``moved`` with offsets that are not zero; ``idle`` are upgraded layers
        that nothing ran through.
    """
    start = time.perf_counter()
    record: Record = {'config': name}
    with repository_of(name), reasons.no_network(), torch.no_grad():
        try:
            _check(_stock(lambda: load_config(name)), record)
        except Unchecked as problem:
            record['reason'] = problem.reason
            if problem.detail:
                record['detail'] = problem.detail
        except Exception as error:
            record.update(reason=reasons.OURS, detail=reasons.short(f'{type(error).__name__}: {error}', 600))
    record['seconds'] = round(time.perf_counter() - start, 1)
    return record


def check_duplicate(name: str, same_as: str) -> Record:
    """A config with the model of another one: its model is not checked again, its upgraded config is made."""
    record: Record = {'config': name, 'reason': reasons.DUPLICATE, 'detail': same_as}
    try:
        cfg = load_config(name)
        _lend_schedule(cfg)
        for part in parts_called(cfg.model, BACKBONES):
            upgrade_config(cfg, load_from='baseline.pth', part=part)
    except Exception as error:
        record.update(reason=reasons.OURS, detail=reasons.short(f'{type(error).__name__}: {error}', 600))
    return record


def _lend_schedule(cfg: Config) -> None:
    if not any(key in (cfg.get('train_cfg') or {}) for key in ('max_epochs', 'max_iters')):
        cfg.train_cfg = dict(max_epochs=12)  # a file of the model alone, or for tests only


def _stock(step: Any) -> Any:
    """What the framework does alone; its errors are not this package's."""
    try:
        return step()
    except Exception as error:
        raise Unchecked(*reasons.reason_of(error)) from error


def _check(cfg: Config, record: Record) -> None:
    model = cfg.get('model')
    if not isinstance(model, Mapping) or 'type' not in model:
        raise Unchecked(reasons.NO_MODEL)
    record['model'] = type_name(model['type'])
    backbones = parts_called(model, BACKBONES)
    if not backbones:
        raise Unchecked(reasons.NO_PICTURE, record['model'])
    _lend_schedule(cfg)
    record['backbone'] = ', '.join(dict.fromkeys(type_name(component(model, part)['type']) for part in backbones))
    build = build_network
    try:
        original = _original(cfg, build)
    except Unchecked as problem:  # a head, a tracker or a language model: not what is upgraded
        build = network.build_parts
        original = _original(cfg, build, problem)
        record['alone'] = str(problem)
        backbones = [part for part in backbones if part in dict(original.named_modules())]
    original.train()  # some backbones freeze in train() only
    original.eval()
    record['parts'] = []
    for part in backbones:
        _check_backbone(cfg, original, part, record, build)


def _original(cfg: Config, build: Build, instead_of: Optional[Unchecked] = None) -> nn.Module:
    try:
        with weights.initializing(weights.Draws()):
            return build(cfg)
    except Exception as error:
        raise (instead_of or Unchecked(*reasons.reason_of(error))) from error


def _check_backbone(cfg: Config, original: nn.Module, backbone: str, record: Record, build: Build) -> None:
    found = network.places(original, backbone)
    if not found:
        raise Unchecked(reasons.STOCK, f'the model has no module for {backbone}')
    module = original.get_submodule(found[0])
    record['convs'] = network.conv_classes(module)
    given = component(cfg.model, backbone)
    size, channels = _picture_size(given), given.get('in_channels', 3)
    runs = _stock(lambda: [network.prepare(original, place, size, channels) for place in found])
    if runs[0].without_neck:
        record['neck'] = reasons.short(runs[0].without_neck)
    count = len(network.trainable_convs(module))
    if count:
        record['parts'].append(_check_part(cfg, original, backbone, runs, build))
    if count < COUNT and not runs[0].without_neck:
        owner = backbone.rpartition('.')[0]
        for neck in parts_called(component(cfg.model, owner), NECKS):
            part = f'{owner}.{neck}'.lstrip('.')
            places = network.places(original, part)
            if places and network.trainable_convs(original.get_submodule(places[0])):
                record['parts'].append(_check_part(cfg, original, part, runs, build))
    if not count:
        raise Unchecked(*_why_none(module))


def _why_none(backbone: nn.Module) -> Tuple[str, str]:
    spatial = network.spatial_classes(backbone)
    names = ', '.join(f'{name} x{number}' for name, number in spatial.items()) or type(backbone).__name__
    if spatial:
        return (reasons.DEFORMABLE if all('DeformConv' in name for name in spatial) else reasons.SUBCLASSES), names
    frozen = any(not parameter.requires_grad for parameter in backbone.parameters() if parameter.dim() == 4)
    return (reasons.FROZEN if frozen else reasons.NO_CONVS), names


def _picture_size(backbone: Mapping[str, Any]) -> int:
    """The only size that backbones with a table of positions take, or one that is large enough for the others."""
    size = next((backbone[key] for key in ('img_size', 'pretrain_img_size', 'input_size') if backbone.get(key)), 512)
    return max(size) if isinstance(size, (tuple, list)) else size


def _check_part(cfg: Config, original: nn.Module, part: str, runs: List[network.Run], build: Build) -> Record:
    """Upgrade one part through the config, give it the original's weights, and compare.

    Raises:
        UpgradeError: a difference that should not be there, or a comparison that would have shown none.
    """
    plain = original.get_submodule(network.places(original, part)[0])
    names = network.trainable_convs(plain)[-COUNT:]
    targets = network.targets_for(plain, names)
    with weights.initializing(weights.raw):
        upgraded = build(upgrade_config(cfg, load_from='baseline.pth', targets=targets, part=part))
    baseline = copy.copy(original.state_dict())
    upgraded.load_state_dict(remap_state_dict(baseline, upgraded.state_dict()), strict=True)
    upgraded.eval()
    result: Record = {'part': part, 'layers': names}
    count = len(upgraded_layers(upgraded))
    if count != len(names):
        result['of'] = count
    with network.counting_runs(upgraded) as ran:
        result['same'] = _largest(upgraded, runs)
    with network.deformable_path():
        result['sampled'] = _largest(upgraded, runs)
        with network.offsets_moved(upgraded):
            result['moved'] = _largest(upgraded, runs)
        if not result['sampled'] < TOLERANCE:  # rounding that the network magnifies, or a mistake
            result['sampled64'] = _largest_in_double(original, upgraded, runs)
    _judge(result, sorted(set(upgraded_layers(upgraded)) - set(ran)))
    return result


def _largest(upgraded: nn.Module, runs: List[network.Run]) -> float:
    return float(f'{max(network.difference(run.again(upgraded), run.outs) for run in runs):.2g}')


def _largest_in_double(original: nn.Module, upgraded: nn.Module, runs: List[network.Run]) -> float:
    original.double()
    upgraded.double()
    try:
        return _largest(upgraded, [replace(run, outs=run.again(original)) for run in runs])
    finally:
        original.float()


def _judge(result: Record, idle: List[str]) -> None:
    problems = []
    if idle:
        result['idle'] = idle
    if result['same'] > 0:
        problems.append(f'the outputs differ by {result["same"]:.2g}')
    if not (result['sampled'] < TOLERANCE or result['sampled64'] < TOLERANCE64):
        problems.append(f'on the deformable path the outputs differ by {result["sampled"]:.2g}')
    if not result['moved'] > MOVED:
        problems.append(f'moved offsets change the outputs by {result["moved"]:.2g} only')
    if len(idle) == result.get('of', len(result['layers'])):
        problems.append('no upgraded layer ran')
    if problems:
        raise UpgradeError(f'{result["part"]} ({", ".join(result["layers"])}): ' + '; '.join(problems))
