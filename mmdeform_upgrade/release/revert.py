# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Back again: which upgraded layers do nothing on given data, what going back costs, and the files that say so."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ..analysis.complexity import hooked
from ..analysis.offsets import percentile95
from ..analysis.receptive_field import offsets_at_zero
from ..checkpoint import StateDict, clean_state_dict
from ..errors import CheckpointError, listed
from ..layers import ZeroOffsetDCN, names_in_state_dict, upgraded_layers
from ..mm.hook import META_KEY
from ..mm.run import numbers_in
from .onnx import flat_tensors
from .rewrite import differing, with_layers

Run = Callable[[], Any]  # one picture or batch through the network


@dataclass(frozen=True)
class LayerVerdict:
    """One layer on the data: 95th percentile of its offsets' length in pixels (None if it never ran or no data was
    given), and the relative difference of its component's output without its offsets."""

    name: str
    zero: bool
    percentile95: float | None
    cost: float | None
    revert: bool

    def __str__(self) -> str:
        seen = self.percentile95 is not None
        length = f'95 % of offsets below {self.percentile95:.4g} px' if seen else 'not seen on the data'
        length = 'offsets exactly zero' if self.zero else length
        cost = '' if self.cost is None else f', reverting it changes the output by {self.cost:.3g} (relative)'
        return f'{self.name}: {"revert" if self.revert else "keep"}: {length}{cost}'


def judge(model: nn.Module, threshold: float | None, runs: Sequence[Run] = ()) -> list[LayerVerdict]:
    """Which layers go back: those at exactly zero, and those whose offsets stay below ``threshold`` on the data.

    Args:
        model: an upgrade; it is not changed.
        threshold: length in pixels of the layer's input, for the 95th percentile; None takes exact zeros alone.
        runs: each puts some of the data through the model.

    Raises:
        CheckpointError: the model has no upgraded layer.
    """
    layers = upgraded_layers(model)
    if not layers:
        raise CheckpointError('the network has no ZeroOffsetDCN: there is nothing to revert')
    lengths = _lengths(layers, runs)
    costs = {name: output_difference(model, [name], runs) for name in layers} if runs else {}
    verdicts = []
    for name, layer in layers.items():
        zero, p95 = layer.conv_offset.is_zero(), percentile95(lengths[name]) if len(lengths[name]) else None
        below = threshold is not None and p95 is not None and p95 < threshold
        verdicts.append(LayerVerdict(name, zero, p95, costs.get(name), zero or below))
    return verdicts


@torch.no_grad()
def output_difference(model: nn.Module, names: Sequence[str], runs: Sequence[Run]) -> float | None:
    """Relative difference |without - with| / |with| (2-norms over all data) of the outputs of the components that hold
    the layers, the backbone as a rule, with and without the offsets of these layers.

    Of a component that is not called itself, as mmseg's heads, it is the outermost module around a layer that is. None
    where no layer ran.
    """
    paths = [name.split('.')[:depth] for name in names for depth in range(1, name.count('.') + 2)]
    around = [model.get_submodule(path) for path in dict.fromkeys(map('.'.join, paths))]
    changed = total = 0.0
    for run in runs:
        before = _outputs(around, run)
        with offsets_at_zero(model, names):
            after = _outputs(around, run)
        for (_, old), (_, new) in zip(before, after, strict=False):
            if old.shape == new.shape:  # not of regions that other offsets propose
                changed += float((new.double() - old.double()).square().sum())
                total += float(old.double().square().sum())
    return (changed / total) ** 0.5 if total else None


def reverted_checkpoint(
    checkpoint: Mapping[str, Any], model: nn.Module, verdicts: Sequence[LayerVerdict]
) -> dict[str, Any]:
    """A checkpoint without the offset branches of the layers that go back; what is for resuming is left out."""
    layers = upgraded_layers(model)
    back = {layers[verdict.name] for verdict in verdicts if verdict.revert}
    gone = [name for name, layer in names_in_state_dict(model).items() if layer in back]
    state_dict = {
        key: value
        for key, value in clean_state_dict(checkpoint['state_dict']).items()
        if not any(key.startswith(f'{name}.conv_offset.') for name in gone)
    }
    meta = dict(checkpoint.get('meta') or {})
    provenance = dict(meta.get(META_KEY) or {})
    kept = provenance.get('layers') or {}
    provenance['layers'] = {name: count for name, count in kept.items() if name not in gone}
    provenance['reverted'] = {v.name: {'percentile95': v.percentile95, 'cost': v.cost} for v in verdicts if v.revert}
    return {'meta': {**meta, META_KEY: provenance}, 'state_dict': state_dict}


def reverted_config(cfg: Config, model: nn.Module, verdicts: Sequence[LayerVerdict], state_dict: StateDict) -> Config:
    """The config of what is left: the remaining targets, or the plain baseline.

    Raises:
        CheckpointError: the network that it builds does not have exactly the names of ``state_dict``.
    """
    layers = upgraded_layers(model)
    result = with_layers(cfg, {v.name: layers[v.name].deform_groups for v in verdicts if not v.revert})
    if odd := differing(result, state_dict):
        raise CheckpointError(
            'no config could be made for what is left, nothing was written; it would differ at '
            f'{listed(odd, 5)}: revert whole components, or write the config by hand'
        )
    return result


def validate(cfg: Config, state_dict: Mapping[str, Tensor], title: str) -> Mapping[str, float]:
    """The validation of a config on given weights; it leaves nothing behind."""
    cfg = copy.deepcopy(cfg)
    hooks = with_layers(cfg, {}).get('custom_hooks')  # those that any network has use for
    with tempfile.TemporaryDirectory() as folder:
        cfg.update(work_dir=folder, load_from=None, resume=False, custom_hooks=hooks or [], experiment_name=title)
        # Nothing is to be saved, and save_best would ask for what only a training sets up.
        cfg.default_hooks = {**(cfg.get('default_hooks') or {}), 'checkpoint': None}
        cfg.visualizer = None  # one of a name exists once a process, with the first run's folder
        runner = Runner.from_cfg(cfg)
        runner.model.load_state_dict(state_dict)
        runner.register_hook(kept := _KeepScores())
        runner.val()
        return kept.scores


class _KeepScores(Hook):
    """Not every validation loop returns them."""

    scores: Mapping[str, float] = {}

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any] | None = None) -> None:
        self.scores = numbers_in(metrics or {})


@torch.no_grad()
def _lengths(layers: Mapping[str, ZeroOffsetDCN], runs: Sequence[Run]) -> dict[str, Tensor]:
    """Lengths of all offsets of each layer, in pixels, over all data and every time that it ran."""
    found: dict[nn.Module, list[Tensor]] = {layer.conv_offset: [torch.empty(0)] for layer in layers.values()}
    for run in runs:
        for branch, offset in _outputs(found, run):
            pairs = offset.float().unflatten(1, (-1, 2))  # (N, GK, 2, Ho, Wo)
            found[branch].append(torch.linalg.vector_norm(pairs, dim=2).flatten().cpu())
    return {name: torch.cat(found[layer.conv_offset]) for name, layer in layers.items()}


def _outputs(modules: Iterable[nn.Module], run: Run) -> list[tuple[nn.Module, Tensor]]:
    """The tensors that modules return in a run, in order, but for calls from within another of them that returns some."""
    kept: list[tuple[nn.Module, Tensor]] = []
    before: list[int] = []  # how many were kept, of each module that is running

    def enter(module: nn.Module, args: Any) -> None:
        before.append(len(kept))

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        first = before.pop()
        if tensors := flat_tensors(output):  # not the samples that a teacher returns
            kept[first:] = [(module, tensor.detach().clone()) for tensor in tensors]

    hooks = [(module.register_forward_pre_hook(enter), module.register_forward_hook(keep)) for module in modules]
    with hooked(chain.from_iterable(hooks)):
        run()
    return kept
