# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Small files: what an upgrade changed against its baseline, and the way back to the whole."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, Dict, List, Mapping, Tuple

import torch
from torch import Tensor

from ..checkpoint import StateDict, clean_state_dict, file_sha256, load_baseline
from ..errors import CheckpointError
from ..readers import read_checkpoint, write_safetensors
from .contents import meta_text, plain_meta, write_checkpoint

_KIND = 'mmdeform_upgrade delta 1'


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest over names, dtypes, shapes and bytes; the order of the names does not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f'{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0'.encode())
        digest.update(_bytes(tensor).numpy().data)
    return digest.hexdigest()


def difference(baseline: Mapping[str, Tensor], upgraded: Mapping[str, Tensor]) -> StateDict:
    """The tensors of ``upgraded`` that ``baseline`` lacks or has with another dtype, shape or bit.

    Raises:
        CheckpointError: the baseline has names that the upgrade lacks, or nothing in common with it.
    """
    missing = [key for key in baseline if key not in upgraded]
    if missing:
        raise CheckpointError(
            f'the second file is no upgrade of the first: it lacks {len(missing)} of its tensors '
            f'({", ".join(missing[:5])}); give the baseline that it was upgraded from'
        )
    return {key: tensor for key, tensor in upgraded.items() if key not in baseline or not _same(baseline[key], tensor)}


def make_delta(baseline: str, upgraded: str, out: str) -> Tuple[int, int]:
    """Write what ``upgraded`` changed against ``baseline`` as a safetensors file.

    Args:
        baseline: its file, in any format that is imported.
        upgraded: checkpoint of the upgrade, in the framework's own names.
        out: safetensors file to write.

    Returns:
        Number of tensors in the delta, and in the upgrade.

    Raises:
        CheckpointError: a file cannot be read, or the second is no upgrade of the first.
    """
    old, (new, meta) = load_baseline(baseline), _read(upgraded)
    changed = difference(old, new)
    write_safetensors(
        out,
        changed,
        {
            **meta_text(plain_meta(meta)),
            'kind': _KIND,
            'baseline': os.path.basename(baseline),
            'baseline_sha256': file_sha256(baseline),
            'baseline_tensors_sha256': tensors_sha256(old),
            'upgraded_tensors_sha256': tensors_sha256(new),
            'names': json.dumps(list(new)),
        },
    )
    return len(changed), len(new)


def apply_delta(baseline: str, delta: str, out: str) -> StateDict:
    """Write the upgrade that a delta was made of; its tensors are those of the original, bit for bit.

    A baseline that was saved again, with the same tensors in another file, will do.

    Returns:
        The state dict written.

    Raises:
        CheckpointError: the baseline is another one (names both hashes), or a file cannot be read.
    """
    given = read_checkpoint(delta)
    metadata = given.get('metadata') or {}
    if metadata.get('kind') != _KIND:
        raise CheckpointError(
            f'{delta} is no delta ({_KIND!r} expected in its metadata, found '
            f'{metadata.get("kind")!r}); make one with delta.py make'
        )
    old = load_baseline(baseline)
    found, expected = tensors_sha256(old), metadata.get('baseline_tensors_sha256')
    if found != expected:
        raise CheckpointError(
            f'{baseline} is not the baseline of {delta}, nothing was written:\n'
            f'  sha256 of the file: {file_sha256(baseline)}, expected {metadata.get("baseline_sha256")}\n'
            f'  sha256 over its tensors: {found}, expected {expected}\n'
            f'Give the file that was called {metadata.get("baseline")!r}.'
        )
    whole = {**old, **given['state_dict']}
    names = _names_of(metadata)
    if sorted(names) != sorted(whole) or tensors_sha256(whole) != metadata.get('upgraded_tensors_sha256'):
        raise CheckpointError(
            f'{delta} does not give the upgrade that it was made of, so it is damaged; copy or download it again'
        )
    result = {name: whole[name] for name in names}
    write_checkpoint(out, result, given.get('meta') or {})
    return result


def _names_of(metadata: Mapping[str, str]) -> List[str]:
    """Names of the upgrade's tensors in their order; none where the metadata are damaged."""
    try:
        names = json.loads(metadata.get('names', '[]'))
    except (ValueError, RecursionError):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _read(path: str) -> Tuple[StateDict, Dict[str, Any]]:
    checkpoint = read_checkpoint(path)
    return clean_state_dict(checkpoint['state_dict']), checkpoint.get('meta') or {}


def _same(old: Tensor, new: Tensor) -> bool:
    # Bits, since NaN differs from itself and 0 equals -0.
    return old.dtype == new.dtype and old.shape == new.shape and torch.equal(_bytes(old), _bytes(new))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
