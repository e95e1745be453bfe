# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""MXNet's parameter files as plain tensors; nothing in such a file can run.

Three containers: the NDArray list of ``mx.nd.save`` and Gluon's ``save_parameters`` (``.params``; written down from
``src/ndarray/ndarray.cc`` and ``include/mxnet/tuple.h`` of MXNet 1.9), GluonCV's model-zoo zip around one, and the
``.npz`` of MXNet 2.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError

MAGIC = struct.pack('<2Q', 0x112, 0)  # and a reserved word
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DTYPES = (
    *('float32', 'float64', 'float16', 'uint8', 'int32', 'int8', 'int64', 'bool', 'int16'),
    *('uint16', 'uint32', 'uint64', 'bfloat16'),
)  # in the order of their codes
_MAX_NDIM = 32


def read_mxnet(path: str) -> dict[str, Any]:
    """Read an MXNet parameter file.

    Args:
        path: an NDArray list of any version (0.x to 1.9), the zip that GluonCV's model zoo serves, or MXNet 2's .npz.

    Returns:
        dict: names, as stored, to CPU tensors or arrays of the stored dtype; a list without names has ``'0'``, ``'1'`` ...

    Raises:
        CheckpointError: content that tensors cannot represent (sparse or undefined arrays, dtypes that this PyTorch
            lacks), or a damaged list.
    """
    with open(path, 'rb') as file:
        data = file.read()
    if data.startswith(MAGIC):
        return _read_list(_Cursor(data))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        name = archive.namelist()[0]
        if not name.endswith('.npy'):
            return _read_list(_Cursor(archive.read(name)))
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


class _Cursor:
    """Reads bytes and knows where it is."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) != count:
            raise CheckpointError(
                f'at byte {self.at} it should go on for {count} bytes, and {len(self.data) - self.at} are left: it is '
                'truncated or damaged; copy or download it again'
            )
        self.at += count
        return piece

    def numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(f'<{layout}', self.take(struct.calcsize(f'<{layout}')))


def _read_list(cursor: _Cursor) -> dict[str, Tensor]:
    _magic, _reserved, count = cursor.numbers('3Q')
    arrays = [_read_array(cursor, f'array {index}') for index in range(count)]
    (count,) = cursor.numbers('Q')
    names = [cursor.take(*cursor.numbers('Q')).decode('utf8') for _ in range(count)] or list(
        map(str, range(len(arrays)))
    )
    if len(set(names)) != len(arrays) or cursor.at < len(cursor.data):
        raise CheckpointError(
            f'it has {len(set(names))} names for {len(arrays)} arrays, and {len(cursor.data) - cursor.at} bytes behind '
            'them: it is damaged; copy or download it again'
        )
    return dict(zip(names, arrays, strict=True))


def _read_array(cursor: _Cursor, what: str) -> Tensor:
    (magic,) = cursor.numbers('I')
    if magic in (_V2, _V3) and cursor.numbers('i') != (0,):
        raise CheckpointError(
            f"{what} is sparse, expected a dense one: call tostype('default') on it and save it again"
        )
    if magic in (_V1, _V2, _V3):
        (ndim,), form = cursor.numbers('i'), 'q'
    else:
        ndim, form = magic, 'I'  # the oldest version has no magic number: its first word is the rank
    least = 0 if magic == _V3 else 1  # which knows scalars and empty arrays; before, a 0 meant that it is not known
    shape = cursor.numbers(f'{ndim}{form}') if least <= ndim <= _MAX_NDIM else (-1,)
    if min(shape, default=least) < least:
        raise CheckpointError(f'{what} is undefined or damaged: it has {ndim} dimensions, of the shape {shape}')
    *_device, code = cursor.numbers('3i')
    name = _DTYPES[code] if 0 <= code < len(_DTYPES) else f'code {code}'
    dtype = getattr(torch, name, None)
    if dtype is None:
        raise CheckpointError(f'{what} has the dtype {name}, which PyTorch {torch.__version__} lacks')
    data = bytearray(cursor.take(math.prod(shape) * dtype.itemsize))
    if not data:
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.bool:  # any byte may stand for true
        return torch.frombuffer(data, dtype=torch.uint8).reshape(shape) != 0
    return torch.frombuffer(data, dtype=dtype).reshape(shape)
