# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What stands beside the tensors of a release, as plain values, and files that are the same for the same contents."""

from __future__ import annotations

import io
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..files import atomic_write
from ..readers import META, split_key

# What tells where a checkpoint is from; times, seeds and paths of a run stay behind.
KEPT_META = (
    'dataset_meta',
    'CLASSES',
    'PALETTE',
    'cfg',
    'config',
    'epoch',
    'iter',
    'mmengine_version',
    'deform_upgrade',
    'imported',
)


def plain(value: Any) -> Any:
    """``value`` made of dict, list, tuple, str, int, float, bool and None alone; what holds other kinds is left out.

    Sets are sorted lists; paths and dates are texts. Of another kind itself, it is ``...``.
    """
    if isinstance(value, (np.generic, np.ndarray, Tensor)):
        value = value.tolist()
    if isinstance(value, (set, frozenset)):
        kept = [entry for entry in map(plain, value) if entry is not ...]
        return sorted(kept, key=lambda entry: (type(entry).__name__, entry))
    if isinstance(value, (str, PurePath, date)):
        return sys.intern(str(value))  # a pickle depends on which equal texts are one object
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, Mapping):
        entries = [(plain(key), plain(entry)) for key, entry in value.items()]
        return {key: entry for key, entry in entries if key is not ... and entry is not ...}
    if isinstance(value, (list, tuple, deque, range)):
        kept = [entry for entry in map(plain, value) if entry is not ...]
        return tuple(kept) if isinstance(value, tuple) else kept
    return ...


def plain_meta(meta: Any) -> dict[str, Any]:
    """The entries of a checkpoint's ``meta`` that a release keeps."""
    kept: dict[str, Any] = plain(meta) if isinstance(meta, Mapping) else {}
    return {key: kept[key] for key in KEPT_META if kept.get(key) is not None}


def meta_text(meta: Mapping[str, Any]) -> dict[str, str]:
    """``meta`` as the metadata of a safetensors file."""
    return {'format': 'pt', META: json.dumps(meta, ensure_ascii=False)}


def write_checkpoint(path: str, state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all; the same contents give the same bytes."""
    tensors = {sys.intern(name): tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
    contents = io.BytesIO()  # torch.save tells nothing of a full disk
    torch.save({'meta': plain(meta), 'state_dict': tensors}, contents)
    with atomic_write(path) as temporary, open(temporary, 'wb') as file:
        file.write(contents.getbuffer())


def refuse_existing(paths: Iterable[str], force: bool, inputs: Iterable[str] = ()) -> None:
    """Refuse to overwrite files without ``--force``, and what is read at all."""
    read = {os.path.realpath(os.path.expanduser(split_key(path)[0])) for path in inputs}
    for path in map(os.path.expanduser, paths):
        if os.path.realpath(path) in read:
            raise ConfigError(f'{path!r} is a file to read; name another one to write')
        if os.path.isdir(path):
            raise ConfigError(f'{path!r} is a folder; name a file in it')
        if os.path.exists(path) and not force:
            raise ConfigError(f'{path!r} exists; give --force to overwrite it, or name another file')
