# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""MXNet's parameter files as plain tensors; nothing in such a file can run.

Three containers: the NDArray list of ``mx.nd.save`` and Gluon's ``save_parameters`` (``.params``; written down from
``src/ndarray/ndarray.cc`` and ``include/mxnet/tuple.h`` of MXNet 1.9), GluonCV's model-zoo zip around one, and the
``.npz`` of MXNet 2. Every number that a file states is held against the bytes that are left before it is believed.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from typing import IO, Callable, Dict, List, Sequence, Tuple

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from ..errors import CheckpointError
from .sniff import check_members

_LIST_MAGIC = struct.pack('<Q', 0x112)
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DTYPES = {
    0: 'float32',
    1: 'float64',
    2: 'float16',
    3: 'uint8',
    4: 'int32',
    5: 'int8',
    6: 'int64',
    7: 'bool',
    8: 'int16',
    9: 'uint16',
    10: 'uint32',
    11: 'uint64',
    12: 'bfloat16',
}
_STORAGE = {1: 'row_sparse', 2: 'csr'}
_MAX_NDIM = 32
# Trained weights hardly compress; what unpacks to more than this many times the file is no checkpoint.
_MAX_RATIO, _ALWAYS_ALLOWED = 8, 1 << 20


def is_mxnet(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (at least 8 bytes) is an NDArray list."""
    return head[:8] == _LIST_MAGIC


def is_mxnet_zip(members: Sequence[str]) -> bool:
    """Whether a zip of these members is MXNet's: one ``.params`` (model zoo), or only ``.npy`` (MXNet 2)."""
    return bool(members) and (
        all(name.endswith('.npy') for name in members) or any(name.endswith('.params') for name in members)
    )


def read_mxnet(path: str) -> Dict[str, Tensor]:
    """Read an MXNet parameter file.

    Args:
        path: an NDArray list of any version (0.x to 1.9), the zip that GluonCV's model zoo serves, or MXNet 2's .npz.

    Returns:
        dict: names, as stored, to CPU tensors of the stored dtype; a list without names has ``'0'``, ``'1'`` ...

    Raises:
        CheckpointError: no such file, another or a damaged file, or content that tensors cannot represent (sparse or
            undefined arrays, dtypes that this PyTorch lacks). It names the byte where that was found.
    """
    path = os.path.expanduser(os.fspath(path))
    if not os.path.isfile(path):
        raise CheckpointError(f'there is no file {path!r}: give the path of a .params file')
    size = os.path.getsize(path)
    try:
        with open(path, 'rb') as file:
            head = file.read(8)
            file.seek(0)
            return _read_zip(file, size) if head.startswith(b'PK') else _read_list(file, size)
    except CheckpointError as error:
        raise CheckpointError(f'{path} is no readable MXNet parameter file ({size} bytes): {error}') from error


class _Cursor:
    """Reads a stream of known length and knows where it is."""

    def __init__(self, stream: IO[bytes], size: int):
        self.stream, self.size, self.at = stream, size, 0

    @property
    def left(self) -> int:
        return self.size - self.at

    def fail(self, found: str, at: int = -1) -> CheckpointError:
        return CheckpointError(f'at byte {self.at if at < 0 else at}: {found}')

    def take(self, count: int, what: str) -> bytearray:
        if count > self.left:
            raise self.fail(
                f'{what} needs {count} bytes, and {self.left} are left: the file is damaged or truncated; '
                'copy or download it again'
            )
        data = bytearray(count)
        view, done = memoryview(data), 0
        while done < count:
            got = self.stream.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                raise self.fail(f'{what} ends {count - done} bytes early', self.at + done)
            done += got
        self.at += count
        return data

    def numbers(self, layout: str, what: str) -> Tuple[int, ...]:
        layout = '<' + layout
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))

    def count(self, what: str, least: int) -> int:
        """A count of things, each of which takes at least ``least`` bytes."""
        at = self.at
        (value,) = self.numbers('Q', f'the number of {what}')
        if value > self.left // least:
            raise self.fail(
                f'it claims {value} {what}, and {self.left} bytes are left: the file is damaged or '
                'truncated; copy or download it again',
                at,
            )
        return value


def _read_list(stream: IO[bytes], size: int) -> Dict[str, Tensor]:
    cursor = _Cursor(stream, size)
    head = bytes(cursor.take(min(8, size), 'the magic number'))
    if not is_mxnet(head):
        raise cursor.fail(
            f'it begins with {head.hex() or "nothing"}, expected {_LIST_MAGIC.hex()}: this is another kind of file', 0
        )
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
    names = names or [str(index) for index in range(len(arrays))]
    _refuse_duplicates(names, f'at byte {at}: ')
    return dict(zip(names, arrays, strict=True))


def _refuse_duplicates(names: List[str], where: str = '') -> None:
    seen: set = set()
    for name in names:
        if name in seen:
            raise CheckpointError(f'{where}the name {name!r} occurs twice')
        seen.add(name)


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
            kind = _STORAGE.get(storage, 'unknown')
            raise cursor.fail(
                f'{what} has storage type {storage} ({kind}), expected a dense array: call '
                "tostype('default') on it in MXNet and save it again",
                at,
            )
    if magic in (_V1, _V2, _V3):
        (ndim,) = cursor.numbers('i', f'the rank of {what}')
        form = 'q'
    else:
        ndim, form = magic, 'I'  # the oldest version has no magic number: its first word is the rank
    if (ndim == 0 and magic != _V3) or (ndim == -1 and magic == _V3):
        raise cursor.fail(f'{what} is undefined: it has neither shape nor values', at)
    if not 0 <= ndim <= _MAX_NDIM:
        raise cursor.fail(f'{what} has {ndim} dimensions, expected 0 to {_MAX_NDIM}', at)
    shape = cursor.numbers(f'{ndim}{form}', f'the shape of {what}')
    if any(dim < 0 or (dim == 0 and magic != _V3) for dim in shape):
        raise cursor.fail(f'{what} has the shape {shape}, in which a dimension is not known', at)
    *_device, code = cursor.numbers('3i', f'the device and the dtype of {what}')
    return _read_values(cursor, what, shape, code)


def _read_values(cursor: _Cursor, what: str, shape: Tuple[int, ...], code: int) -> Tensor:
    name = _DTYPES.get(code, f'code {code}')
    dtype = getattr(torch, name, None)
    if dtype is None:
        raise cursor.fail(f'{what} has the dtype {name}, which PyTorch {torch.__version__} lacks', cursor.at - 4)
    if math.prod(max(dim, 1) for dim in shape) * dtype.itemsize >= 1 << 63:
        raise cursor.fail(f'{what} has the shape {shape}, more than any tensor can have')
    data = cursor.take(math.prod(shape) * dtype.itemsize, f'{what}, {name} of the shape {shape},')
    if not data:
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.bool:  # any byte may stand for true
        return torch.frombuffer(data, dtype=torch.uint8).reshape(shape) != 0
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


def _read_zip(file: IO[bytes], size: int) -> Dict[str, Tensor]:
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_members(archive, size)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for damaged bytes
        raise CheckpointError(
            f'its zip is damaged ({type(error).__name__}: {error}); copy or download it again'
        ) from error


def _read_members(archive: zipfile.ZipFile, size: int) -> Dict[str, Tensor]:
    members = archive.infolist()
    names = [member.filename for member in members]
    claimed = sum(member.file_size for member in members)
    if claimed > max(_MAX_RATIO * size, _ALWAYS_ALLOWED):
        raise CheckpointError(
            f'its members claim {claimed} bytes, more than {_MAX_RATIO} times the file: no weights compress so well'
        )
    if names and all(name.endswith('.npy') for name in names):
        _refuse_duplicates(names)
        check_members(members)
        return {member.filename[: -len('.npy')]: _read_npy(archive.read(member), member.filename) for member in members}
    if len(names) != 1 or not names[0].endswith('.params') or set(names[0]) & set('/\\:'):
        raise CheckpointError(
            f'this zip holds {len(names)} members ({", ".join(map(repr, names[:3]))}), expected the '
            "model zoo's one .params file, or only .npy files"
        )
    check_members(members)
    with archive.open(members[0]) as stream:
        return _read_list(stream, members[0].file_size)


_NPY_HEADERS: Dict[Tuple[int, int], Callable] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def _read_npy(data: bytes, name: str) -> Tensor:
    """numpy's own reader allocates what a header claims; here the header has to agree with the bytes first."""
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    if version not in _NPY_HEADERS:
        raise CheckpointError(f'{name} has the .npy version {version}, expected 1.0 or 2.0')
    shape, fortran_order, dtype = _NPY_HEADERS[version](stream)
    if dtype.name not in _DTYPES.values() or not hasattr(torch, dtype.name):
        raise CheckpointError(f'{name} has the dtype {dtype.name}, which PyTorch {torch.__version__} lacks')
    if len(shape) > _MAX_NDIM or min(shape, default=0) < 0:
        raise CheckpointError(f'{name} has the shape {shape}')
    left = len(data) - stream.tell()
    if math.prod(shape) * dtype.itemsize != left:
        raise CheckpointError(
            f'{name}, {dtype.name} of the shape {shape}, needs {math.prod(shape) * dtype.itemsize} bytes and has {left}'
        )
    array = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order='F' if fortran_order else 'C')
    return torch.from_numpy(np.array(array, dtype.newbyteorder('='), order='C'))
