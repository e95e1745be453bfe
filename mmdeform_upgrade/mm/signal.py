# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The offsets' signal of a config and its trained baseline, beside the network's reach and the objects' extents."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.logging import MessageHub
from torch import Tensor, nn
from tqdm import tqdm

from ..analysis.look import check_device
from ..analysis.receptive_field import reaches
from ..analysis.signal import FEWEST, LayerSignal, offset_signal
from ..checkpoint import load_baseline
from ..errors import ConfigError, DataError, TargetError
from ..layers import upgraded_layers
from ..offsets.optimizer import OFFSET_LR
from ..targets import Targets, find_targets, upgradable_names
from ..upgrade import upgrade_
from .loading import local_path
from .preflight import build_network

_PEEKED = 4  # batches whose labels are looked at before the work starts


@dataclass(frozen=True)
class SignalReport:
    """Where an upgrade has something to learn."""

    part: str  # the component of the model
    layers: list[LayerSignal]  # names are those inside the part
    reach: dict[str, tuple[float, float]]  # pixels of the picture that each layer sees, in theory and effectively
    extents: tuple[float, float, float]  # quartiles of the objects' longer sides in pixels, as the network sees them
    batch_size: int
    pictures: int  # in the training set
    targets: list[str]  # what to give to --targets; empty where nothing learns

    def __str__(self) -> str:
        rows = [('layer', 'signal', 'z', 'own weights', 'step', 'cost', 'sees (effectively)', 'verdict')]
        for layer in self.layers:
            sees = '{:.0f} px ({:.0f})'.format(*self.reach[layer.layer]) if layer.layer in self.reach else '-'
            numbers = (f'{layer.snr:.2f}', f'{layer.z:.1f}', f'{layer.weight_snr:.2f}', f'{layer.step:.3f} px')
            rows.append((layer.layer, *numbers, f'+{100 * layer.cost:.1f} %', sees, layer.verdict))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ['  '.join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return '\n'.join((*table, self._conditions(), self._advice()))

    def _conditions(self) -> str:
        seen = self.layers[0].batches * self.batch_size / max(self.pictures, 1)
        again = f', each seen {seen:.1f} times' if seen > 1 else ''
        return (
            f'signal: 1 is noise; {self.layers[0].batches} batches of {self.batch_size} from {self.pictures} pictures'
            f'{again}. Objects are {self.extents[1]:.0f} px long (quartiles {self.extents[0]:.0f}, '
            f'{self.extents[2]:.0f}).'
        )

    def _advice(self) -> str:
        if all(layer.verdict == 'no gradient' for layer in self.layers):
            return (
                'no gradient reaches these layers: the loss does not depend on them, or what is behind them is zero (batch '
                'norms of a network that was not trained, say)'
            )
        if not self.targets:
            return (
                f'no layer learns: {self.layers[0].batches} batches do not agree where to look, and an upgrade is not '
                'expected to gain'
            )
        lines = []
        if self.reach:
            effective = max(effective for _, effective in self.reach.values())
            long = self.extents[1]
            lines.append(
                f'Objects are longer ({long:.0f} px) than what the network effectively sees ({effective:.0f} px): expect most '
                'where their shape makes the class.'
                if effective < long
                else f'The network effectively sees {effective:.0f} px, and objects are {long:.0f} px long: expect less.'
            )
        part = '' if self.part == 'backbone' else f'--part {self.part} '
        return '\n'.join([*lines, f'use: {part}--targets {" ".join(self.targets)}'])

    def as_dict(self) -> dict[str, Any]:
        """The report for a JSON file; what is not finite is None."""
        kept = dataclasses.asdict(self)
        for row, layer in zip(kept['layers'], self.layers, strict=True):
            row.update(noise_scale=layer.noise_scale, verdict=layer.verdict)
        plain: dict[str, Any] = json.loads(json.dumps(kept), parse_constant=lambda text: None)
        return plain


def measure_signal(
    cfg: Config,
    checkpoint: str,
    *,
    targets: Targets | None = None,
    exclude: Targets = (),
    part: str = 'backbone',
    batches: int = 32,
    lr: float = OFFSET_LR,
    device: str = 'cpu',
) -> SignalReport:
    """Upgrade a baseline in memory and measure it on batches of its own training pipeline, with a progress bar.

    Args:
        cfg: the baseline's config.
        checkpoint: the trained baseline.
        targets: see :func:`find_targets`; all spatial convolutions of the part that train where it is None.
        exclude: convolutions to leave alone.
        part: the component of the model.
        batches: how many; at least 12.
        lr: rate of the offsets' Adam.
        device: where the network runs.

    Raises:
        ConfigError: a setting makes no sense, the config has no training set, or is upgraded already.
        DataError: the training set cannot be read, or has no labels.
        CheckpointError, TargetError: as for an upgrade.
    """
    from mmengine.runner import set_random_seed

    if batches < FEWEST or not lr > 0:
        raise ConfigError(f'batches={batches}, lr={lr}: expected at least {FEWEST} batches and a rate above 0')
    if not cfg.get('train_dataloader'):
        raise ConfigError("the config has no train_dataloader: the signal is measured on the baseline's training set")
    check_device(device)
    set_random_seed(0)
    for clock in ('iter', 'epoch'):  # which some models ask for (YOLOX, TOOD), and a runner's hook keeps
        MessageHub.get_current_instance().update_info(clock, 0)
    network, component = _baseline(cfg, checkpoint, part)
    names = find_targets(component, targets or _candidates(component, part), exclude)
    loader = _loader(cfg)
    stream = _endless(loader)
    first = list(islice(stream, min(_PEEKED, batches)))
    network.to(device)
    prepared = [_prepared(network, batch) for batch in first]
    classes = getattr(loader.dataset, 'metainfo', {}).get('classes') or ()
    objects = _annotated(prepared, classes)
    while not objects and len(first) < batches:  # most pictures may show none
        first.append(next(stream))
        objects = _annotated([_prepared(network, first[-1])], classes)
    extents = _extents(objects, len(first))
    every = upgradable_names(dict(component.named_modules()))
    layers = {name: module for name, module in component.named_modules() if name in names}
    network.eval()
    reach = reaches(layers, prepared[0]['inputs'][:2], network.extract_feat)
    # The mode of a training: batch norms use and move what norm_eval leaves them.
    upgrade_(component, names)
    network.to(device).train()
    measured = tqdm(islice(chain(first, stream), batches), total=batches, desc='signal', unit='batch')
    found = offset_signal(network, measured, _loss, lr=lr)
    signals = [dataclasses.replace(layer, layer=layer.layer.removeprefix(f'{part}.')) for layer in found]
    samples, chosen = len(prepared[0]['data_samples']), _chosen(signals, every)
    return SignalReport(part, signals, reach, extents, samples, _pictures(loader.dataset), chosen)


def _chosen(layers: list[LayerSignal], every: list[str]) -> list[str]:
    """What to give to ``--targets``: the layers whose signal is at least half of the strongest."""
    clear = [layer for layer in layers if layer.verdict == 'learns']
    least = max((layer.snr - 1 for layer in clear), default=0.0) / 2
    names = [layer.layer for layer in clear if layer.snr - 1 >= least]
    return [f'last:{len(names)}'] if names and names == every[-len(names) :] else names


def _baseline(cfg: Config, checkpoint: str, part: str) -> tuple[Any, nn.Module]:
    network = build_network(cfg)
    if upgraded_layers(network):
        raise ConfigError('the config is upgraded already: give the config and the checkpoint of the baseline')
    try:
        component = network.get_submodule(part)
    except AttributeError:
        if (cfg.get('model') or {}).get('detector'):  # of mmdet's semi-supervised ones
            raise ConfigError(
                'the signal is of one network, and this one is a teacher and a student: measure the detector in it, with '
                'its own config and checkpoint'
            ) from None
        parts = ', '.join(name for name, _ in network.named_children())
        raise ConfigError(f'the model has no part {part!r}: it has {parts}') from None
    network.load_state_dict(load_baseline(local_path(checkpoint), network))
    network.train()  # some backbones freeze their stages here
    for module in network.modules():
        if getattr(module, 'with_cp', False):  # recomputation gives its gradients to .backward() alone
            module.with_cp = False  # type: ignore[assignment]
    return network, component


def _candidates(component: nn.Module, part: str) -> list[str]:
    modules = dict(component.named_modules())
    names = [name for name in upgradable_names(modules) if modules[name].get_parameter('weight').requires_grad]
    if not names:
        raise TargetError(
            f'{part} has no convolution to upgrade: none is exactly an nn.Conv2d with a kernel larger than 1x1 that '
            'trains; lower frozen_stages, or name another --part'
        )
    return names


def _loader(cfg: Config) -> Any:
    from mmengine.runner import Runner

    try:
        return Runner.build_dataloader(cfg.train_dataloader, seed=0)
    except OSError as error:
        raise DataError(f'the training set cannot be read: {error}') from error
    except ValueError as error:  # of a set without pictures, from MMEngine's serialisation
        raise DataError(
            f'the training set has no picture with labels of the classes in the config ({error})'
        ) from error


def _pictures(dataset: Any) -> int:
    """Of a data set, without its repetitions."""
    if hasattr(dataset, 'datasets'):  # ConcatDataset
        return sum(map(_pictures, dataset.datasets))
    return _pictures(dataset.dataset) if hasattr(dataset, 'dataset') else len(dataset)


def _endless(loader: Any) -> Iterator[Any]:
    for epoch in range(2**31):
        if hasattr(loader.sampler, 'set_epoch'):
            loader.sampler.set_epoch(epoch)
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise DataError(
                'the training set gives no batch: with drop_last, as iterative loops have it, it needs at least as many '
                'pictures as train_dataloader.batch_size'
            )


def _prepared(network: Any, batch: Any) -> Any:
    prepared = network.data_preprocessor(
        copy.deepcopy(batch), training=True
    )  # augmentations of batches move boxes in place
    if not (isinstance(prepared, dict) and isinstance(prepared.get('inputs'), Tensor)):
        raise ConfigError(
            f'{type(network).__name__} trains on batches of several kinds; give the config of a plain detector or segmentor'
        )
    return prepared


def _loss(network: Any, batch: Any) -> Tensor:
    losses = network(**network.data_preprocessor(batch, training=True), mode='loss')
    return network.parse_losses(losses)[0]


def _annotated(batches: list[Any], classes: Sequence[str]) -> list[tuple[float, float]]:
    unlabelled = {255, 0} if classes and classes[0] == 'background' else {255}
    return [item for batch in batches for sample in batch['data_samples'] for item in _objects(sample, unlabelled)]


def _extents(found: list[tuple[float, float]], batches: int) -> tuple[float, float, float]:
    if not found:
        raise DataError(
            f'{batches} batches of the training set have no label that counts: boxes or classes are all ignored. '
            'Look at the annotations, the classes (metainfo) and the pipeline of train_dataloader'
        )
    return quartiles(found)


def quartiles(objects: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Of lengths with weights."""
    lengths, weights = np.array(sorted(objects)).T
    below = weights.cumsum() / weights.sum()
    return tuple(float(lengths[np.searchsorted(below, q)]) for q in (0.25, 0.5, 0.75))  # type: ignore[return-value]


def _objects(sample: Any, unlabelled: set[int]) -> Iterator[tuple[float, float]]:
    """Longer side and weight of what is annotated in a picture."""
    instances = getattr(sample, 'gt_instances', None)
    if instances is not None and 'bboxes' in instances:
        boxes = getattr(instances.bboxes, 'tensor', instances.bboxes)
        for x1, y1, x2, y2 in boxes[:, :4].tolist():
            yield max(x2 - x1, y2 - y1), 1.0
        return
    yield from regions(sample.gt_sem_seg.data.squeeze().cpu().numpy(), unlabelled)


def regions(labels: np.ndarray, unlabelled: set[int]) -> Iterator[tuple[float, float]]:
    """Longer side and area of each connected region of a class, (H, W)."""
    import cv2

    for label in set(np.unique(labels).tolist()) - unlabelled:
        _, _, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8))
        for region in stats[1:]:
            yield float(max(region[cv2.CC_STAT_WIDTH], region[cv2.CC_STAT_HEIGHT])), float(region[cv2.CC_STAT_AREA])
