# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What a checkpoint is, from its file alone, read without running anything that it holds."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import DELTA, clean_state_dict, file_sha256, import_checkpoint, is_delta, is_offset_key
from ..errors import CheckpointError
from ..importers import OWN_NAMES
from ..readers import kind_of, read_checkpoint, split_key
from .contents import plain

# PyTorch's, MXNet's and Detectron's names for the statistics of batch norms
_STATISTICS = re.compile(r'.*(?:(?:running|moving)_(?:mean|var)|num_batches_tracked|_bn_(?:rm|riv))')
_PROGRESS = ('epoch', 'iter', 'iteration', 'global_step')


@dataclass(frozen=True)
class OffsetLayer:
    """One upgraded layer: its deform groups G (None where the shape fits none) and its largest offset parameter."""

    name: str
    deform_groups: int | None
    largest: float

    def __str__(self) -> str:
        moved = f'moved, largest offset parameter {self.largest:.4g}' if self.largest else 'exactly zero'
        moved = moved if math.isfinite(self.largest) else 'not finite: the training that saved them diverged'
        return f'{self.name}: deform_groups {self.deform_groups or "unknown (not of DCNv1)"}, offsets {moved}'


@dataclass(frozen=True)
class Inspection:
    """Everything that ``tools/upgrade.py --inspect`` shows."""

    path: str
    sha256: str
    container: str  # kind of file
    format: str  # what family its names are of
    layers: tuple[OffsetLayer, ...]  # the upgraded layers; none in a baseline
    provenance: Mapping[str, Any]  # meta['deform_upgrade']
    meta: Mapping[str, Any]  # and how long it was trained, where that stands beside the weights
    parameters: tuple[int, int, int]  # numbers in parameters, of these in offset branches, and in BN statistics
    extras: tuple[str, ...]  # what it holds besides weights ('optimizer', 'ema_state_dict' ...), by the file's names

    def __str__(self) -> str:
        total, offsets, statistics = self.parameters
        kind, count = 'a baseline, nothing in it is upgraded', len(self.layers)
        if count:
            kind = f'an upgrade of {count} layers' if self.provenance else f'a network with {count} deformable layers'
        if self.format == DELTA:
            kind = 'a delta, which holds only what an upgrade changed'
        trained = ', '.join(f'{key} {self.meta[key]}' for key in _PROGRESS if key in self.meta)
        lines = [
            f'{self.path}: {kind}',
            f'  file: {self.container}, {os.path.getsize(split_key(self.path)[0])} bytes, sha256 {self.sha256}',
            *([f'  format: {self.format}'] if self.format != OWN_NAMES else []),
            f'  parameters: {total} (of these {offsets} in offset branches), BN statistics: {statistics}',
            *(f'  {layer}' for layer in self.layers),
            f'  trained: {trained or "not recorded"}',
            f'  besides weights: {", ".join(self.extras) or "nothing"}',
        ]
        if self.provenance or count:
            lines.append('  provenance:' if self.provenance else '  provenance: not recorded')
        return '\n'.join([*lines, *(f'    {key}: {value}' for key, value in self.provenance.items())])


def inspect_checkpoint(path: str) -> Inspection:
    """Look at any checkpoint that ``load_baseline`` reads, of this project or of another library.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = os.path.expanduser(path)
    checkpoint = read_checkpoint(path)
    meta = checkpoint.get('meta')
    progress = {key: plain(checkpoint[key]) for key in _PROGRESS if key in checkpoint}
    beside = {key: value for key, value in progress.items() if isinstance(value, int)}
    meta = {**beside, **(meta if isinstance(meta, Mapping) else {})}
    try:
        imported = import_checkpoint({**checkpoint, 'meta': meta})
        tensors, format = imported.state_dict, imported.format
    except CheckpointError as error:  # of a known family, but damaged or unfinished: it can be looked at all the same
        tensors = clean_state_dict(checkpoint['state_dict'])
        format = DELTA if is_delta(checkpoint) else f'not importable: {error}'
    provenance = meta.get('deform_upgrade')
    known = ('state_dict', 'meta', 'metadata', *_PROGRESS)
    statistics = sum(t.numel() for key, t in tensors.items() if _STATISTICS.fullmatch(key))
    offsets = sum(t.numel() for key, t in tensors.items() if is_offset_key(key))
    return Inspection(
        path,
        file_sha256(path),
        kind_of(split_key(path)[0]),
        format,
        _offset_layers(tensors),
        provenance if isinstance(provenance, Mapping) else {},
        meta,
        (sum(t.numel() for t in tensors.values()) - statistics, offsets, statistics),
        tuple(str(key) for key, value in checkpoint.items() if key not in known and not _is_empty(value)),
    )


def _offset_layers(state_dict: Mapping[str, Tensor]) -> tuple[OffsetLayer, ...]:
    """The deformable layers of a state dict, in its order."""
    layers: dict[str, OffsetLayer] = {}
    for key, tensor in filter(lambda entry: is_offset_key(entry[0]), state_dict.items()):
        name = key.rpartition('conv_offset.')[0].rstrip('.')
        known = layers.get(name, OffsetLayer(name, None, 0.0))
        taps = 2 * tensor[0, 0].numel() if tensor.dim() == 4 else 0  # of a weight (2GK, C, kh, kw)
        groups = len(tensor) // taps if taps and len(tensor) % taps == 0 else 0
        fits = groups and tensor.shape[1] % groups == 0  # not of DCNv2, or of other layers called so
        largest = torch.stack([torch.tensor(known.largest), tensor.detach().float().abs().max().cpu()]).max()  # or NaN
        layers[name] = OffsetLayer(name, groups if fits else known.deform_groups, float(largest))
    return tuple(layers.values())


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (Mapping, list, tuple, str)) and not value)
