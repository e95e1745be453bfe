# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Baselines: loading one, and pure functions on state dicts."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from .errors import CheckpointError
from .importers import OWN_NAMES, Imported, import_state_dict
from .readers import read_tensors
from .targets import check_module

StateDict = Dict[str, Tensor]

_OFFSET_KEY = re.compile(r'(?:.*\.)?conv_offset\.(?:weight|bias)')
_SHOWN = 20


def load_baseline(path: str, model: Optional[nn.Module] = None) -> StateDict:
    """The tensors of a trained baseline, read safely, under mmdet's or mmseg's names.

    Args:
        path: a checkpoint of the OpenMMLab libraries, a bare state dict, or one of the foreign files that
            ``docs/formats.md`` lists; recognised by its content.
        model: the network that it is meant for, upgraded or not; it is not changed. With it, a state dict in the
            network's own names passes as it is, and everything is checked.

    Returns:
        dict: names (without a leading ``module.``) to CPU tensors. With ``model`` it loads strictly, but for the
        offset branches of an upgraded network.

    Raises:
        CheckpointError: the file cannot be read or imported, or does not fit ``model``; names every problem.
    """
    imported, remapped = _read(path, model)
    if remapped is None:
        return imported.state_dict
    return {key: value for key, value in remapped.state_dict.items() if key not in remapped.added}


def import_baseline(path: str, model: Optional[nn.Module] = None) -> Imported:
    """As :func:`load_baseline`, with the report of what was renamed, changed and dropped.

    Its ``state_dict`` holds what the file has, so it may lack ``num_batches_tracked``.
    """
    return _read(path, model)[0]


def read_baseline(path: str, model: nn.Module) -> Tuple[Imported, Remapped]:
    """Both halves of :func:`load_baseline`: the import, and what it became for ``model``, offsets included."""
    imported, remapped = _read(path, model)
    assert remapped is not None
    return imported, remapped


def import_checkpoint(checkpoint: Mapping[str, Any], network: Optional[Iterable[str]] = None) -> Imported:
    """A read checkpoint (``state_dict`` and what stands beside it) under mmdet's or mmseg's names.

    Args:
        checkpoint: as :func:`read_tensors` gives it.
        network: names of the network that it is meant for, where that is known.
    """
    return import_state_dict(clean_state_dict(checkpoint['state_dict']), checkpoint.get('meta'), network)


def fit_baseline(imported: Imported, model: nn.Module, network: Optional[StateDict] = None) -> Remapped:
    """Check that ``model`` is the network that was imported, and complete the state dict for it.

    Args:
        imported: the baseline.
        model: the network.
        network: its state dict, where the network's own is not whole (sharded).

    Raises:
        CheckpointError: settings that would change the numbers, and keys that are missing, unexpected or of another
            shape, in one message.
    """
    problems = imported.problems(model)
    remapped: Optional[Remapped] = None
    try:
        remapped = remap_state_dict(imported.state_dict, model.state_dict() if network is None else network)
    except CheckpointError as error:
        problems.append(str(error))
    if problems or remapped is None:
        foreign = '' if imported.format == OWN_NAMES else f'it was recognised as {imported.format}\n'
        raise CheckpointError(foreign + '\n'.join(problems))
    return remapped


def file_sha256(path: str) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(os.path.expanduser(path), 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def clean_state_dict(state_dict: Any) -> StateDict:
    """Check that it is names to tensors, and drop the prefix that a distributed wrapper leaves."""
    if not isinstance(state_dict, Mapping) or not state_dict:
        found = 'empty' if isinstance(state_dict, Mapping) else f'a {type(state_dict).__name__}'
        raise CheckpointError(f'the state dict is {found}, expected names and tensors')
    wrong = [str(key) for key, value in state_dict.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(
            f'expected only tensors under the state dict, found others at {_listed(wrong)}: is it a '
            'checkpoint with its weights under a key other than state_dict?'
        )
    return {re.sub(r'^module\.', '', key): value for key, value in state_dict.items()}


def is_offset_key(key: str) -> bool:
    """Whether a state-dict key belongs to an offset branch."""
    return _OFFSET_KEY.fullmatch(key) is not None


@dataclass(frozen=True)
class Remapped:
    """A baseline's state dict made complete for the upgraded network.

    Attributes:
        state_dict: what the network loads strictly.
        added: offset keys that the baseline lacked; zeros were put there.
        kept: offset keys that the checkpoint had.
    """

    state_dict: StateDict
    added: Tuple[str, ...]
    kept: Tuple[str, ...]


def remap_state_dict(baseline: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> Remapped:
    """Fit a baseline's state dict to the upgraded network: offsets zero, everything else exactly the baseline's.

    Args:
        baseline: names to tensors; its tensors are not copied.
        network: the upgraded network's own ``state_dict()``, for names, shapes and dtypes.

    Raises:
        CheckpointError: every key that is missing, unexpected or of another shape, in one message.
    """
    counters = [key for key in network if key.endswith('num_batches_tracked') and key not in baseline]
    added = [key for key in network if is_offset_key(key) and key not in baseline]
    missing = [key for key in network if key not in baseline and key not in added and key not in counters]
    # Half of an offset branch is a damaged checkpoint, not a baseline.
    missing += [key for key in added if _twin(key) in baseline]
    unexpected = [key for key in baseline if key not in network]
    shapes = [
        f'{key}: the checkpoint has {tuple(baseline[key].shape)}, the network {tuple(network[key].shape)}'
        for key in baseline
        if key in network and baseline[key].shape != network[key].shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(_misfit(missing, unexpected, shapes, len(network) - len(added) - len(counters)))
    state_dict = dict(baseline)
    for key in added + counters:
        state_dict[key] = torch.zeros_like(network[key], device='cpu')
    kept = tuple(key for key in baseline if is_offset_key(key))
    return Remapped(state_dict, tuple(added), kept)


def nonzero_offsets(state_dict: Mapping[str, Tensor]) -> List[str]:
    """Offset keys that hold anything but zeros."""
    return [key for key, value in state_dict.items() if is_offset_key(key) and bool(value.any())]


def _read(path: str, model: Optional[nn.Module]) -> Tuple[Imported, Optional[Remapped]]:
    if model is not None:
        check_module(model)
    contents = read_tensors(path)
    try:
        names = None if model is None else model.state_dict()
        imported = import_checkpoint({**contents.rest, 'state_dict': contents.tensors}, names)
        return imported, None if model is None else fit_baseline(imported, model)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error


def _twin(key: str) -> str:
    stem, _, last = key.rpartition('.')
    return f'{stem}.{"bias" if last == "weight" else "weight"}'


def _misfit(missing: List[str], unexpected: List[str], shapes: List[str], required: int) -> str:
    lines = ['the checkpoint does not fit the network (only offset branches may be new):']
    for title, keys in (
        ('missing in the checkpoint', missing),
        ('unexpected in the checkpoint', unexpected),
        ('of another shape', shapes),
    ):
        if keys:
            lines.append(f'  {title} ({len(keys)}): {_listed(keys)}')
    if len(missing) > required // 2:
        lines.append(
            'Most of the network is missing: this is a checkpoint of another architecture, or in a format '
            'that is not known (docs/formats.md lists those that are).'
        )
    elif shapes and all('cls' in text or 'fc_' in text or 'conv_seg' in text for text in shapes):
        lines.append('Only classification layers differ: the checkpoint was trained on another number of classes.')
    lines.append('Give the checkpoint that the baseline config was trained to, or the config that it was trained with.')
    return '\n'.join(lines)


def _listed(items: List[str]) -> str:
    return ', '.join(items[:_SHOWN]) + (f' and {len(items) - _SHOWN} more' if len(items) > _SHOWN else '')
