# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""MXNet's parameter files as plain tensors; nothing in such a file can run.

Three containers: the NDArray list of ``mx.nd.save`` and Gluon's ``save_parameters`` (``.params``; written down from
``src/ndarray/ndarray.cc`` and ``include/mxnet/tuple.h`` of MXNet 1.9), GluonCV's model-zoo zip around one, and the
``.npz`` of MXNet 2. Every number that a file states is held against the bytes that are left before it is believed.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError

MXNET_MAGIC = struct.pack('<Q', 0x112)
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DTYPES = (
    *('float32', 'float64', 'float16', 'uint8', 'int32', 'int8', 'int64', 'bool', 'int16'),
    *('uint16', 'uint32', 'uint64', 'bfloat16'),
)  # in the order of their codes
_STORAGE = {1: 'row_sparse', 2: 'csr'}
_MAX_NDIM = 32
_DAMAGED = 'the file is damaged or truncated; copy or download it again'


def is_mxnet_zip(members: Sequence[str]) -> bool:
    """Whether a zip of these members is MXNet's: one ``.params`` (model zoo), or only ``.npy`` (MXNet 2)."""
    return bool(members) and (
        all(name.endswith('.npy') for name in members) or (len(members) == 1 and members[0].endswith('.params'))
    )


def read_mxnet(path: str) -> dict[str, Tensor]:
    """Read an MXNet parameter file.

    Args:
        path: an NDArray list of any version (0.x to 1.9), the zip that GluonCV's model zoo serves, or MXNet 2's .npz.

    Returns:
        dict: names, as stored, to CPU tensors of the stored dtype; a list without names has ``'0'``, ``'1'`` ...

    Raises:
        CheckpointError: content that tensors cannot represent (sparse or undefined arrays, dtypes that this PyTorch
            lacks), or a damaged list. It names the byte where that was found.
    """
    with open(path, 'rb') as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return _read_list(file.read())
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise CheckpointError(f'the name {max(names, key=names.count)!r} occurs twice')
        if not names[0].endswith('.npy'):
            return _read_list(archive.read(names[0]))
    with np.load(path, allow_pickle=False) as arrays:
        return {name: _tensor_of(name, arrays[name]) for name in arrays.files}


def _tensor_of(name: str, array: np.ndarray) -> Tensor:
    if array.dtype.name not in _DTYPES or not hasattr(torch, array.dtype.name):
        raise CheckpointError(f'{name} has the dtype {array.dtype.name}, which PyTorch {torch.__version__} lacks')
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder('='), order='C'))


class _Cursor:
    """Reads bytes and knows where it is."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def fail(self, found: str, at: int = -1) -> CheckpointError:
        return CheckpointError(f'at byte {self.at if at < 0 else at}: {found}')

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise self.fail(f'{what} needs {count} bytes, and {self.left} are left: {_DAMAGED}')
        self.at += count
        return self.data[self.at - count : self.at]

    def numbers(self, layout: str, what: str) -> tuple[int, ...]:
        layout = '<' + layout
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))

    def count(self, what: str, least: int) -> int:
        """A count of things, each of which takes at least ``least`` bytes."""
        at = self.at
        (value,) = self.numbers('Q', f'the number of {what}')
        if value > self.left // least:
            raise self.fail(f'it claims {value} {what}, and {self.left} bytes are left: {_DAMAGED}', at)
        return value


def _read_list(data: bytes) -> dict[str, Tensor]:
    cursor = _Cursor(data)
    head = cursor.take(min(8, len(data)), 'the magic number')
    if head != MXNET_MAGIC:
        raise cursor.fail(f'it begins with {head.hex() or "nothing"}, expected {MXNET_MAGIC.hex()}', 0)
    (reserved,) = cursor.numbers('Q', 'the reserved word')
    if reserved:
        raise cursor.fail(f'the reserved word is {reserved:#x}, expected 0', 8)
    arrays = [_read_array(cursor, index) for index in range(cursor.count('arrays', 8))]
    at = cursor.at
    names = [_read_name(cursor) for _ in range(cursor.count('names', 8))]
    if len(names) not in (0, len(arrays)):
        raise cursor.fail(f'it has {len(names)} names for {len(arrays)} arrays', at)
    if cursor.left:
        raise cursor.fail(f'{cursor.left} bytes follow the last name, expected the end of the file')
    if len(set(names)) < len(names):
        raise cursor.fail(f'the name {max(names, key=names.count)!r} occurs twice', at)
    return dict(zip(names or map(str, range(len(arrays))), arrays, strict=True))


def _read_name(cursor: _Cursor) -> str:
    length = cursor.count('bytes of a name', 1)
    at = cursor.at
    try:
        return cursor.take(length, 'a name').decode('utf8')
    except UnicodeDecodeError as error:
        raise cursor.fail(f'a name of {length} bytes is not UTF-8 ({error.reason})', at) from None


def _read_array(cursor: _Cursor, index: int) -> Tensor:
    what, at = f'array {index}', cursor.at
    (magic,) = cursor.numbers('I', what)
    if magic in (_V2, _V3):
        (storage,) = cursor.numbers('i', f'the storage type of {what}')
        if storage:
            kind = f'{storage} ({_STORAGE.get(storage, "unknown")}), expected a dense array'
            raise cursor.fail(f"{what} has storage type {kind}: call tostype('default') on it and save it again", at)
    if magic in (_V1, _V2, _V3):
        (ndim,) = cursor.numbers('i', f'the rank of {what}')
        form = 'q'
    else:
        ndim, form = magic, 'I'  # the oldest version has no magic number: its first word is the rank
    least = 0 if magic == _V3 else 1  # which knows scalars and empty arrays; before, a 0 meant that it is not known
    if not least <= ndim <= _MAX_NDIM:
        raise cursor.fail(
            f'{what} has {ndim} dimensions, expected {least} to {_MAX_NDIM}: it is undefined or damaged', at
        )
    shape = cursor.numbers(f'{ndim}{form}', f'the shape of {what}')
    if min(shape, default=least) < least:
        raise cursor.fail(f'{what} has the shape {shape}, in which a dimension is not known', at)
    *_device, code = cursor.numbers('3i', f'the device and the dtype of {what}')
    return _read_values(cursor, what, shape, code)


def _read_values(cursor: _Cursor, what: str, shape: tuple[int, ...], code: int) -> Tensor:
    name = _DTYPES[code] if 0 <= code < len(_DTYPES) else f'code {code}'
    dtype = getattr(torch, name, None)
    if dtype is None:
        raise cursor.fail(f'{what} has the dtype {name}, which PyTorch {torch.__version__} lacks', cursor.at - 4)
    data = bytearray(cursor.take(math.prod(shape) * dtype.itemsize, f'{what}, {name} of the shape {shape},'))
    if not data:
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.bool:  # any byte may stand for true
        return torch.frombuffer(data, dtype=torch.uint8).reshape(shape) != 0
    return torch.frombuffer(data, dtype=dtype).reshape(shape)
