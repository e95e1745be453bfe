# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Writing files whole or not at all."""

from __future__ import annotations

import glob
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from .errors import CheckpointError


@contextmanager
def atomic_write(path: str) -> Iterator[str]:
    """A temporary path in the same folder, which takes the place of ``path`` when the block ends without an error.

    A process that is killed, or a machine that stops, leaves ``path`` as it was before or as it is afterwards.
    """
    path = os.path.realpath(os.path.expanduser(os.fspath(path)))
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f'.{name}.{secrets.token_hex(4)}')
    try:
        yield temporary
        _sync(temporary)  # or the name could reach the disk before the bytes
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    with suppress(OSError):  # not every system can
        _sync(folder)


def remove_leftovers(folder: str, pattern: str) -> None:
    """Remove what killed processes left of files that match ``pattern``, such as ``'*.pth'``."""
    for path in glob.glob(os.path.join(glob.escape(folder), f'.{pattern}.????????')):
        with suppress(OSError):
            os.unlink(path)


def write_safetensors(path: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write names to tensors, and texts beside them, whole or not at all.

    Tensors that share memory are written once each; strides and devices do not matter.

    Raises:
        CheckpointError: a name, a dtype or a text that the format cannot hold.
    """
    from safetensors.torch import save

    try:
        # Copies, since the library refuses tensors that share memory.
        copies = {
            name: tensor.detach().to('cpu', copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        contents = memoryview(save(copies, dict(metadata or {}) or None))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f'a safetensors file cannot hold this: {error}') from error
    start = 8 + int.from_bytes(contents[:8], 'little')
    with atomic_write(path) as temporary, open(temporary, 'wb') as file:
        file.write(contents[:8])
        file.write(_with_sorted_texts(contents[8:start].tobytes()))
        file.write(contents[start:])


def _with_sorted_texts(header: bytes) -> bytes:
    """With sorted metadata, which the library writes in any order: the same contents are to be the same bytes."""
    entries = json.loads(header)
    entries = {key: dict(sorted(value.items())) if key == '__metadata__' else value for key, value in entries.items()}
    text = json.dumps(entries, separators=(',', ':'), ensure_ascii=False).encode().ljust(len(header))
    return text if len(text) == len(header) else header


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
