# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Baselines: loading one, and pure functions on state dicts.

A checkpoint takes two shapes on its way: the dict that its file holds (``state_dict`` and what stands beside it, see
:func:`read_checkpoint`), and an :class:`Imported` under the network's names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CheckpointError, listed, naming
from .importers import OWN_NAMES, Imported, import_state_dict
from .layers import names_in_state_dict
from .readers import read_checkpoint, split_key
from .targets import check_module

StateDict = dict[str, Tensor]
DELTA = 'mmdeform_upgrade delta 2'  # the kind of file that holds only what an upgrade changed

_COMPILED = re.compile(r'(?:^|(?<=\.))_orig_mod\.')
_COUNTERS = {'steps', 'n_averaged'}  # MMEngine's and PyTorch's
_OFFSET_KEY = re.compile(r'(?:.*\.)?conv_offset\.(?:weight|bias)')


def load_baseline(path: str, model: nn.Module | None = None, *, key: str | None = None) -> StateDict:
    """The tensors of a trained baseline, read safely, under mmdet's or mmseg's names.

    Args:
        path: a checkpoint of the OpenMMLab libraries, a bare state dict, or one of the foreign files that
            ``docs/formats.md`` lists; recognised by its content. ``FILE::KEY`` also gives the key.
        model: the network that it is meant for, upgraded or not; it is not changed. With it, a state dict in the
            network's own names passes as it is, and everything is checked.
        key: where in the file the weights are, if it holds several sets of them (``'ema'``, ``'teacher'``).

    Returns:
        dict: names (without a leading ``module.``) to CPU tensors. With ``model`` it loads strictly, but for the
        offset branches of an upgraded network.

    Raises:
        CheckpointError: the file cannot be read or imported, or does not fit ``model``; names every problem.
    """
    imported = import_baseline(path, model, key=key)
    return {name: value for name, value in imported.state_dict.items() if name not in imported.added}


def import_baseline(path: str, model: nn.Module | None = None, *, key: str | None = None) -> Imported:
    """As :func:`load_baseline`, with the report of what was renamed, changed and dropped.

    With ``model`` its ``state_dict`` is complete: offsets that the baseline lacks (``added``) are zeros in it.
    """
    if model is not None:
        check_module(model)
    checkpoint = read_checkpoint(path, key=key)
    with naming(path):
        imported = import_checkpoint(checkpoint, None if model is None else model.state_dict())
        return imported if model is None else fit_baseline(imported, model)


def import_checkpoint(checkpoint: Mapping[str, Any], network: Iterable[str] | None = None) -> Imported:
    """A checkpoint, as read, under mmdet's or mmseg's names; those of its network, where that is known, stay.

    Raises:
        CheckpointError: it cannot be imported, or is a delta.
    """
    refuse_delta(checkpoint)
    state_dict, names = checkpoint['state_dict'], set(network or ())
    state_dict = state_dict if state_dict.keys() <= names else clean_state_dict(state_dict)
    return import_state_dict(state_dict, checkpoint.get('meta'), names if network is not None else None)


def fit_baseline(imported: Imported, model: nn.Module, network: StateDict | None = None) -> Imported:
    """Check that ``model`` is the network that was imported, and complete the state dict for it.

    Args:
        imported: the baseline.
        model: the network. Only the offsets of its ``ZeroOffsetDCN`` layers may be missing in the baseline.
        network: its state dict, where the network's own is not whole (sharded).

    Raises:
        CheckpointError: settings that would change the numbers, and weights that are not finite, or keys that are
            missing, unexpected or of another shape, in one message.
    """
    problems = imported.problems(model)
    new = [f'{name}.conv_offset.{kind}' for name in names_in_state_dict(model) for kind in ('weight', 'bias')]
    state_dict: StateDict = {}
    network = model.state_dict() if network is None else network
    try:
        refuse_not_finite(imported.state_dict, network)
        state_dict = remap_state_dict(imported.state_dict, network, new)
    except CheckpointError as error:
        problems.append(str(error))
    if problems:
        foreign = '' if imported.format == OWN_NAMES else f'it was recognised as {imported.format}\n'
        raise CheckpointError(foreign + '\n'.join(problems))
    added = tuple(name for name in new if name in state_dict and name not in imported.state_dict)
    return replace(imported, state_dict=state_dict, added=added)


def remap_state_dict(
    baseline: Mapping[str, Tensor], network: Mapping[str, Tensor], new: Collection[str] | None = None
) -> StateDict:
    """Fit a baseline's state dict to the upgraded network: offsets zero, everything else exactly the baseline's.

    Args:
        baseline: names to tensors; its tensors are not copied.
        network: the upgraded network's own ``state_dict()``, for names, shapes and dtypes.
        new: keys that the baseline may lack; by default those of all layers called ``conv_offset``.

    Returns:
        What the network loads strictly.

    Raises:
        CheckpointError: every key that is missing, unexpected or of another shape, in one message.
    """
    lacking = [key for key in network if key not in baseline]
    counters = [key for key in lacking if key.endswith('num_batches_tracked')]
    may_lack = [key for key in lacking if (is_offset_key(key) if new is None else key in new)]
    halves = {key.rpartition('.')[0] for key in baseline if is_offset_key(key)}  # of a damaged checkpoint
    added = [key for key in may_lack if key.rpartition('.')[0] not in halves]
    missing = [key for key in lacking if key not in added and key not in counters]
    unexpected = [key for key in baseline if key not in network]
    shapes = {
        key: (tuple(value.shape), tuple(network[key].shape))
        for key, value in baseline.items()
        if key in network and value.shape != network[key].shape
    }
    if missing or unexpected or shapes:
        raise CheckpointError(_misfit(missing, unexpected, shapes, len(network)))
    return {**baseline, **{key: torch.zeros_like(network[key], device='cpu') for key in added + counters}}


def not_finite(tensors: Iterable[tuple[str, Any]]) -> list[str]:
    """Names of floating-point tensors with anything but finite numbers; one wait for the device."""
    floats = [(name, value) for name, value in tensors if isinstance(value, Tensor) and value.is_floating_point()]
    if not floats:
        return []
    finite = torch.stack([torch.isfinite(value.detach()).all().to(floats[0][1].device) for _, value in floats])
    return [name for (name, _), good in zip(floats, finite.tolist(), strict=True) if not good]


def refuse_not_finite(state_dict: Mapping[str, Any], network: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not finite. What the network itself has so, as the mask of an attention, may be.

    Raises:
        CheckpointError: names them.
    """
    if broken := sorted(set(not_finite(state_dict.items())) - set(not_finite(network.items()))):
        raise CheckpointError(
            f'{len(broken)} of its tensors are not finite ({listed(broken, 5)}): the training that saved it diverged, and '
            'nothing can be trained from there; give a checkpoint from before that'
        )


def file_sha256(path: str) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(split_key(path)[0], 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def clean_state_dict(state_dict: Mapping[str, Tensor]) -> StateDict:
    """A state dict, as read, without what wrappers leave in it: prefixes (``module.``, and ``_orig_mod.`` of
    ``torch.compile``), the counters of averaged copies, and the copies that mmcv 1's ``EMAHook`` left, which are those of
    the raw weights, while the averaged ones have the names of the network."""
    others = {f'ema_{key.replace(".", "_")}' for key in state_dict} | _COUNTERS
    return {
        _COMPILED.sub('', key).removeprefix('module.'): value for key, value in state_dict.items() if key not in others
    }


def is_delta(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a read checkpoint is a delta, or the adapter that a delta of offset branches is."""
    metadata = checkpoint.get('metadata')
    return isinstance(metadata, Mapping) and metadata.get('kind') == DELTA


def refuse_delta(checkpoint: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a delta, where a whole checkpoint is needed."""
    if is_delta(checkpoint):
        raise CheckpointError(
            'it is a delta, which holds only what an upgrade changed: make the whole checkpoint with '
            'tools/model_converters/delta.py apply, or load an adapter with load_adapter'
        )


def refuse_lost_offsets(path: str, names: Iterable[str], network: Collection[str]) -> None:
    """Raise CheckpointError for offset branches that a network lacks, where a loader would leave them out."""
    lost = [key for key in names if is_offset_key(key) and key.removeprefix('module.') not in network]
    if lost:
        raise CheckpointError(
            f'{path} is the checkpoint of an upgrade, and the network of the config lacks its offset branches '
            f'({listed(lost)}): give the config that it was trained with'
        )


def is_offset_key(key: str) -> bool:
    """Whether a state-dict key belongs to an offset branch."""
    return _OFFSET_KEY.fullmatch(key) is not None


def _misfit(
    missing: list[str], unexpected: list[str], shapes: Mapping[str, tuple[tuple[int, ...], ...]], total: int
) -> str:
    # Rows alone, as many as of a bias: layers that nothing comes behind, and what has a row for each class (embeddings).
    rows = {(a[:1], b[:1]) for key, (a, b) in shapes.items() if key.endswith('bias')}
    outputs_alone = rows and all(a[1:] == b[1:] and (a[:1], b[:1]) in rows for a, b in shapes.values())
    found = {
        'missing in the checkpoint': missing,
        'unexpected in the checkpoint': unexpected,
        'of another shape': [f'{key}: the checkpoint has {a}, the network {b}' for key, (a, b) in shapes.items()],
    }
    lines = ['the checkpoint does not fit the network (only offset branches may be new):']
    lines += [f'  {title} ({len(keys)}): {listed(keys)}' for title, keys in found.items() if keys]
    if others := sorted({key.rpartition('.conv_offset.')[0] for key in missing if is_offset_key(key)}):
        lines.append(
            f'The checkpoint lacks offsets of these deformable layers, or a part of them: {listed(others)}. A checkpoint of an '
            'upgrade has them all. Layers that are no ZeroOffsetDCN compute something else than the baseline when they are '
            'newly made: take them out of the config (dcn=...), or upgrade them.'
        )
    if prefix := _prefix(missing, unexpected):
        lines.append(
            f'Its names begin with {prefix!r}, which the names of the network do not: save those without it, as in '
            f'{{name.partition({prefix!r})[2]: value for name, value in state_dict.items() if {prefix!r} in name}}.'
        )
    elif 2 * len(missing) >= total:
        lines.append(
            'Most of the network is missing: this is a checkpoint of another architecture, or in a format '
            'that is not known (docs/formats.md lists those that are).'
        )
    elif outputs_alone and not missing and not unexpected:
        lines.append(
            'Only the number of outputs differs: the checkpoint was trained on another number of classes (or of anchors).'
        )
    lines.append('Give the checkpoint that the baseline config was trained to, or the config that it was trained with.')
    return '\n'.join(lines)


def _prefix(missing: list[str], unexpected: list[str]) -> str:
    """What most missing names have before them in the checkpoint (``'model.'``), where that is so."""
    names = set(unexpected)
    found = {name.removesuffix(key) for key in missing[:3] for name in unexpected if name.endswith(f'.{key}')}
    return next((p for p in sorted(found) if sum(p + key in names for key in missing) > len(missing) // 2), '')
