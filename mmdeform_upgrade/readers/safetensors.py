# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Safetensors files, by the library of that name: tensors, texts beside them, no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .files import written_whole

META = 'meta'  # under this name the metadata hold a checkpoint's meta, as JSON


def read_safetensors(path: str) -> dict[str, Any]:
    """``state_dict``, the texts beside it (``metadata``), and ``meta`` where a release of this package has it."""
    from safetensors import safe_open

    with safe_open(path, framework='pt') as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    checkpoint: dict[str, Any] = {'state_dict': tensors, **({'metadata': metadata} if metadata else {})}
    text = metadata.get(META, '')
    if text.lstrip()[:1] == '{':  # other libraries may mean anything by that name
        checkpoint['meta'] = json.loads(text)
    return checkpoint


def write_safetensors(path: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write names to tensors, and texts beside them, whole or not at all.

    Tensors that share memory are written once each; strides and devices do not matter.

    Raises:
        CheckpointError: a name, a dtype or a text that the format cannot hold.
    """
    from safetensors.torch import save_file

    with written_whole(path) as temporary:
        try:
            # Copies, since the library refuses tensors that share memory.
            copies = {
                name: tensor.detach().to('cpu', copy=True, memory_format=torch.contiguous_format)
                for name, tensor in tensors.items()
            }
            save_file(copies, temporary, dict(metadata or {}) or None)
            _sort_texts(temporary)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f'a safetensors file cannot hold this: {error}') from error


def _sort_texts(path: str) -> None:
    """Sort the metadata, which the library writes in any order: the same contents are to be the same bytes."""
    with open(path, 'r+b') as file:
        length = int.from_bytes(file.read(8), 'little')
        header = json.loads(file.read(length))
        header = {key: dict(sorted(value.items())) if key == '__metadata__' else value for key, value in header.items()}
        text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode().ljust(length)
        if len(text) == length:
            file.seek(8)
            file.write(text)
