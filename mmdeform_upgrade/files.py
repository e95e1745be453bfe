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
def written_whole(path: str) -> Iterator[str]:
    """A temporary path in the same folder, which takes the place of ``path`` when the block ends without an error.

    A process that is killed, or a machine that stops, leaves ``path`` as it was before or as it is afterwards.
    """
    path = os.path.abspath(os.path.expanduser(os.fspath(path)))
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f'.{name}.{secrets.token_hex(4)}')
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # those of safetensors are for their owner alone
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


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
