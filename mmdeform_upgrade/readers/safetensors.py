# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The safetensors format: a length, a JSON header of that length, and the tensors' bytes without gaps.

https://github.com/huggingface/safetensors/blob/v0.4.5/README.md#format
"""

from __future__ import annotations

import json
import os
import struct
from math import prod
from typing import Any, BinaryIO, Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from .files import written_whole

_DTYPES = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'I64': torch.int64,
    'I32': torch.int32,
    'I16': torch.int16,
    'I8': torch.int8,
    'U8': torch.uint8,
    'BOOL': torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # the format's own limit
_METADATA = '__metadata__'


def read_safetensors(path: str) -> Tuple[Dict[str, Tensor], Dict[str, str]]:
    """The tensors of a safetensors file and its ``__metadata__``.

    Args:
        path: a local file.

    Raises:
        CheckpointError: the header is damaged, or what it says and the file's bytes differ in any way.
    """
    try:
        with open(path, 'rb') as file:
            size = os.fstat(file.fileno()).st_size
            header, start = _header(file, size)
            metadata = header.pop(_METADATA, {})
            if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
                raise CheckpointError('its __metadata__ is not names and texts')
            tensors: Dict[str, Tensor] = {}
            for name, dtype, shape, length in _entries(header, size - start):
                tensors[name] = _tensor(file, name, dtype, shape, length)
    except CheckpointError as error:
        raise CheckpointError(
            f'{path} is no readable safetensors file ({size} bytes): {error}; copy or download it again'
        ) from error
    return {name: tensors[name] for name in header}, metadata


def write_safetensors(path: str, tensors: Mapping[str, Tensor], metadata: Optional[Mapping[str, str]] = None) -> None:
    """Write names to tensors, and texts beside them, whole or not at all.

    Tensors that share memory are written once each; strides and devices do not matter.

    Raises:
        CheckpointError: a name, a dtype or a text that the format cannot hold.
    """
    header: Dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    if not all(isinstance(text, str) for pair in (metadata or {}).items() for text in pair):
        raise CheckpointError('metadata of a safetensors file is texts under texts')
    for name, tensor in tensors.items():
        if name == _METADATA or not isinstance(name, str) or tensor.dtype not in _NAMES:
            raise CheckpointError(f'a safetensors file cannot hold {name!r}, a tensor of {tensor.dtype}')
    # Widest first, so that each begins at a multiple of its width.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    offset = 0
    for name in order:
        end = offset + tensors[name].numel() * tensors[name].element_size()
        header[name] = dict(
            dtype=_NAMES[tensors[name].dtype], shape=list(tensors[name].shape), data_offsets=[offset, end]
        )
        offset = end
    text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
    text += b' ' * (-len(text) % 8)
    with written_whole(path) as temporary, open(temporary, 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for name in order:
            file.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def looks_like_safetensors(head: bytes) -> bool:
    """Whether the first bytes of a file are a header's length and its beginning."""
    return len(head) > 8 and head[8:9] == b'{' and struct.unpack('<Q', head[:8])[0] <= 1 << 48


def _header(file: BinaryIO, size: int) -> Tuple[Dict[str, Any], int]:
    start = file.read(8)
    length = struct.unpack('<Q', start)[0] if len(start) == 8 else size
    if length > size - 8:
        raise CheckpointError(f'its header claims {length} bytes, so it is truncated or damaged')
    if length > _MAX_HEADER:
        raise CheckpointError(f'its header has {length} bytes, more than the format allows')
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f'its header is no JSON ({type(error).__name__})') from error
    if not isinstance(header, dict):
        raise CheckpointError('its header is no JSON object')
    return header, 8 + length


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CheckpointError('its header has a name twice')
    return result


def _entries(header: Mapping[str, Any], data: int) -> List[Tuple[str, torch.dtype, List[int], int]]:
    """Names, dtypes, shapes and lengths in the order of the file; together they are all of its ``data`` bytes."""
    entries, end = [], 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(*item)):
        offsets, shape, dtype = entry['data_offsets'], entry.get('shape'), _DTYPES.get(str(entry.get('dtype')))
        if dtype is None:
            raise CheckpointError(f'{name!r} has the dtype {str(entry.get("dtype"))[:40]!r}')
        if not isinstance(shape, list) or not all(type(dim) is int and 0 <= dim < 1 << 40 for dim in shape):
            raise CheckpointError(f'{name!r} has no proper shape')
        if offsets[0] != end:
            raise CheckpointError(f'{name!r} begins at byte {offsets[0]} of the data, expected {end}')
        if prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
            raise CheckpointError(f'{name!r} of shape {str(shape)[:80]} has {offsets[1] - offsets[0]} bytes')
        end = offsets[1]
        entries.append((name, dtype, shape, end - offsets[0]))
    if end != data:
        raise CheckpointError(f'its header describes {end} bytes of data, and the file has {data}')
    return entries


def _offsets(name: str, entry: Any) -> Tuple[int, int]:
    offsets = entry.get('data_offsets') if isinstance(entry, dict) else None
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(offset) is int and 0 <= offset < 1 << 62 for offset in offsets)
    ):
        raise CheckpointError(f'{str(name)[:80]!r} has no proper data_offsets')
    return offsets[0], offsets[1]


def _tensor(file: BinaryIO, name: str, dtype: torch.dtype, shape: List[int], length: int) -> Tensor:
    data = bytearray(file.read(length))
    if len(data) != length:
        raise CheckpointError(f'{name!r} ends beyond the file')
    if dtype is torch.bool and length and max(data) > 1:
        raise CheckpointError(f'{name!r} has truth values other than 0 and 1')
    try:
        return (torch.frombuffer(data, dtype=dtype) if length else torch.empty(0, dtype=dtype)).reshape(shape)
    except RuntimeError as error:
        raise CheckpointError(f'{name!r} has no proper shape') from error
