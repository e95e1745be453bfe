# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Small files: what an upgrade changed against its baseline, and the way back to the whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

import torch
from torch import Tensor

from ..checkpoint import DELTA, StateDict, clean_state_dict, file_sha256, import_checkpoint
from ..errors import CheckpointError, listed, naming
from ..files import write_safetensors
from ..offsets.adapters import as_bytes, baseline_sha256, contents_sha256, read_delta, tensors_sha256
from ..readers import read_checkpoint
from .contents import meta_text, plain_meta, write_checkpoint


def make_delta(baseline: str, upgraded: str, out: str) -> tuple[list[str], int]:
    """Write what ``upgraded`` changed against ``baseline`` as a safetensors file.

    Args:
        baseline: its file, in any format that is imported.
        upgraded: checkpoint of the upgrade, in the framework's own names.
        out: safetensors file to write.

    Returns:
        Names of the tensors in the delta, and number of those in the upgrade.

    Raises:
        CheckpointError: a file cannot be read, or the second is no upgrade of the first, or the same.
    """
    checkpoint = read_checkpoint(upgraded)
    new = clean_state_dict(checkpoint['state_dict'])
    old = _baseline(baseline, new)
    if missing := [key for key in old if key not in new]:
        raise CheckpointError(
            f'the second file is no upgrade of the first: it lacks {len(missing)} of its tensors ({listed(missing, 5)}); '
            'give the baseline that it was upgraded from'
        )
    cast = {key: tensor.to(new[key].dtype) for key, tensor in old.items() if _same(tensor.to(new[key].dtype), new[key])}
    changed = {key: tensor for key, tensor in new.items() if key not in cast}
    if not changed:
        raise CheckpointError(
            f'{upgraded} holds the tensors of {baseline}, bit for bit: there is no difference to write'
        )
    metadata = {
        **meta_text(plain_meta(checkpoint.get('meta'))),
        'kind': DELTA,
        'baseline': os.path.basename(baseline),
        'baseline_sha256': file_sha256(baseline),
        'baseline_tensors_sha256': baseline_sha256(old),
        'upgraded_tensors_sha256': tensors_sha256(new),
        'names': json.dumps(list(new)),
        'cast': json.dumps({k: str(v.dtype).partition('.')[2] for k, v in cast.items() if v.dtype != old[k].dtype}),
    }
    write_safetensors(out, changed, {**metadata, 'contents_sha256': contents_sha256(changed, metadata)})
    return list(changed), len(new)


def apply_delta(baseline: str, delta: str, out: str) -> StateDict:
    """Write the upgrade that a delta was made of; its tensors are those of the original, bit for bit.

    A baseline that was saved again, with the same tensors in another file, will do.

    Returns:
        The state dict written.

    Raises:
        CheckpointError: the baseline is another one (names both hashes), or a file cannot be read.
    """
    read = read_delta(delta)
    metadata = read['metadata']
    old = _baseline(baseline, json.loads(metadata['names']))
    found, expected = baseline_sha256(old), metadata['baseline_tensors_sha256']
    cast = json.loads(metadata.get('cast', '{}'))  # of a baseline in half precision
    old.update({key: old[key].to(getattr(torch, name)) for key, name in cast.items() if key in old})
    whole = {**old, **read['state_dict']}
    if found != expected or tensors_sha256(whole) != metadata['upgraded_tensors_sha256']:
        raise CheckpointError(
            f'{baseline} is not the baseline of {delta}, or has it in another precision; nothing was written:\n'
            f'  sha256 of the file: {file_sha256(baseline)}, expected {metadata["baseline_sha256"]}\n'
            f'  sha256 over its tensors: {found}, expected {expected}\n'
            f'Give the file that was called {metadata["baseline"]!r}.'
        )
    result = {name: whole[name] for name in json.loads(metadata['names'])}
    write_checkpoint(out, result, read.get('meta') or {})
    return result


def _baseline(path: str, network: Iterable[str]) -> StateDict:
    """Its tensors under the names of the upgrade, which are not mmdet's where the network is not."""
    checkpoint = read_checkpoint(path)
    with naming(path):
        return import_checkpoint(checkpoint, network).state_dict


def _same(old: Tensor, new: Tensor) -> bool:
    # Bits, since NaN differs from itself and 0 equals -0.
    return old.dtype == new.dtype and old.shape == new.shape and torch.equal(as_bytes(old), as_bytes(new))
