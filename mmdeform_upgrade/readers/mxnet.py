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
from typing import IO, Any

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
    if not data.startswith(MAGIC):
        with zipfile.ZipFile(path) as archive:
            name = archive.namelist()[0]
            if name.endswith('.npy'):
                with np.load(path, allow_pickle=False) as arrays:
                    return dict(arrays)
            data = archive.read(name)
    return _read_list(io.BytesIO(data))


def _read_list(file: IO[bytes]) -> dict[str, Tensor]:
    _magic, _reserved, count = _numbers(file, '3Q')
    arrays = [_read_array(file, f'array {index}') for index in range(count)]
    (count,) = _numbers(file, 'Q')
    names = [_take(file, *_numbers(file, 'Q')).decode('utf8') for _ in range(count)]
    names = names or [str(index) for index in range(len(arrays))]
    if len(set(names)) != len(arrays) or file.read(1):
        raise EOFError(f'it has {len(set(names))} names for {len(arrays)} arrays, or more behind them')
    return dict(zip(names, arrays, strict=True))


def _take(file: IO[bytes], count: int) -> bytes:
    piece = file.read(count)
    if len(piece) != count:
        raise EOFError(f'{count} bytes expected, {len(piece)} are left')
    return piece


def _numbers(file: IO[bytes], layout: str) -> tuple[int, ...]:
    return struct.unpack(f'<{layout}', _take(file, struct.calcsize(f'<{layout}')))


def _read_array(file: IO[bytes], what: str) -> Tensor:
    (magic,) = _numbers(file, 'I')
    if magic in (_V2, _V3) and _numbers(file, 'i') != (0,):
        raise CheckpointError(
            f"{what} is sparse, expected a dense one: call tostype('default') on it and save it again"
        )
    if magic in (_V1, _V2, _V3):
        (ndim,), form = _numbers(file, 'i'), 'q'
    else:
        ndim, form = magic, 'I'  # the oldest version has no magic number: its first word is the rank
    least = 0 if magic == _V3 else 1  # which knows scalars and empty arrays; before, a 0 meant that it is not known
    shape = _numbers(file, f'{ndim}{form}') if least <= ndim <= _MAX_NDIM else (-1,)
    if min(shape, default=least) < least:
        raise CheckpointError(f'{what} is undefined or damaged: it has {ndim} dimensions, of the shape {shape}')
    *_device, code = _numbers(file, '3i')
    name = _DTYPES[code] if 0 <= code < len(_DTYPES) else f'code {code}'
    dtype = getattr(torch, name, None)
    if dtype is None:
        raise CheckpointError(f'{what} has the dtype {name}, which PyTorch {torch.__version__} lacks')
    data = bytearray(_take(file, math.prod(shape) * dtype.itemsize))
    if not data:
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.bool:  # any byte may stand for true
        return torch.frombuffer(data, dtype=torch.uint8).reshape(shape) != 0
    return torch.frombuffer(data, dtype=dtype).reshape(shape)
