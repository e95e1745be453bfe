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


def read_safetensors(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its ``__metadata__``.

    Raises:
        CheckpointError: the header is damaged, or what it says and the file's bytes differ.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='pt') as file:
            names = file.keys()
            return {name: file.get_tensor(name).clone() for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(
            f'it is no readable safetensors file ({error}), so it may be truncated or damaged; copy or download it again'
        ) from error


def write_safetensors(path: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write names to tensors, and texts beside them, whole or not at all.

    Tensors that share memory are written once each; strides and devices do not matter.

    Raises:
        CheckpointError: a name, a dtype or a text that the format cannot hold.
    """
    from safetensors.torch import save_file

    if '__metadata__' in tensors:
        raise CheckpointError("a safetensors file cannot hold '__metadata__', the name of its own texts")
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


def meta_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What stands beside the tensors, with ``meta`` where a release of this package has it."""
    rest: dict[str, Any] = {'metadata': dict(metadata)} if metadata else {}
    text = metadata.get(META, '')
    if text.lstrip()[:1] == '{':  # other libraries may mean anything by that name
        try:
            rest['meta'] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"the file's metadata have a damaged entry {META!r} ({type(error).__name__}); copy or download it again"
            ) from error
    return rest
