# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""PyTorch's two containers, its zip and the older one, to values on the CPU."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .unpickle import KNOWN, Known, Unpickler, call

MAGIC = 0x1950A86A20F9469CFC6C  # which the older container begins with, pickled
_OTHER_END = 'it was written on a big-endian machine; save it again on a little-endian one'


def read_zip(path: str) -> Any:
    """The value in PyTorch's zip. Each member that is read is held against its checksum.

    Raises:
        CheckpointError: it is a program.
    """
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        main = next(name for name in sorted(names) if name.rpartition('/')[2] == 'data.pkl')
        folder = main.removesuffix('data.pkl')
        if f'{folder}constants.pkl' in names:
            raise CheckpointError('it is a TorchScript program, not a checkpoint; save its state_dict() instead')
        if not archive.getinfo(main).CRC:  # torch.serialization.set_crc32_options(False)
            for member in archive.infolist():
                del member.CRC
        if f'{folder}byteorder' in names and archive.read(f'{folder}byteorder') == b'big':
            raise CheckpointError(_OTHER_END)
        loaded: dict[str, Tensor] = {}

        def storage(dtype: Any, key: str, location: str, count: int, view: Any = None) -> Any:
            if not isinstance(dtype, torch.dtype):
                return dtype
            if key not in loaded:
                data = bytearray(archive.read(f'{folder}data/{key}'))
                loaded[key] = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
            return _values(loaded[key], dtype, 0, count)

        with archive.open(main) as file:
            return Unpickler(io.BytesIO(file.read()), storage).load()


def read_legacy(file: IO[bytes], size: int) -> Any:
    """The value in PyTorch's older container, after its first pickle, the magic number.

    Args:
        file: at its second pickle.
        size: bytes of the whole file.
    """
    _protocol, system = (Unpickler(file).load() for _ in range(2))
    if not system.get('little_endian', True):
        raise CheckpointError(_OTHER_END)
    storages: dict[str, tuple[Tensor, int]] = {}

    def storage(dtype: Any, key: str, location: str, count: int, view: Any = None) -> Any:
        if not isinstance(dtype, torch.dtype):
            return dtype
        if count * dtype.itemsize > size:
            raise CheckpointError('it claims more data than the file has')
        if key not in storages:
            storages[key] = torch.empty(count * dtype.itemsize, dtype=torch.uint8), dtype.itemsize
        return _values(storages[key][0], dtype, *((0, count) if view is None else view[1:]))

    value = Unpickler(file, storage).load()
    for key in Unpickler(file).load():
        data, width = storages[key]
        count = int.from_bytes(file.read(8), 'little')
        if count * width != len(data) or file.readinto(data.numpy().data) != len(data):  # type: ignore[attr-defined]
            raise CheckpointError('it ends within a tensor, so it is truncated or damaged; copy or download it again')
    return value


def _values(data: Tensor, dtype: torch.dtype, start: int, count: int) -> Tensor:
    """A storage, as a flat tensor."""
    width = dtype.itemsize
    if (start + count) * width > len(data):
        raise CheckpointError(f'it holds a storage of {len(data)} bytes, where {count} values of {dtype} should be')
    return data[start * width : (start + count) * width].view(dtype)


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *more: Any) -> Tensor:
    if storage.dim() != 1 or not storage.is_contiguous() or any(more[2:]):  # a view of conjugated or negated numbers
        raise TypeError
    end = offset + (1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if all(size) else 0)
    if min((offset, *size, *stride)) < 0 or end > len(storage):
        raise CheckpointError(
            f'it holds a tensor of shape {str(tuple(size))[:80]} in a storage of {len(storage)} values'
        )
    return torch.empty(0, dtype=storage.dtype).set_(
        storage.untyped_storage(), storage.storage_offset() + offset, tuple(size), tuple(stride)
    )


def _from_bytes(data: bytes) -> Any:
    file = io.BytesIO(data)
    if Unpickler(file).load() != MAGIC:
        raise TypeError
    return read_legacy(file, len(data))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    'torch.Size': torch.Size,
    'torch.device': torch.device,
    'torch.storage._load_from_bytes': _from_bytes,  # tensors in a pickle
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': lambda storage, offset, size, stride, grad, hooks, dtype, *more: _tensor(
        storage.view(dtype), offset, size, stride, grad, hooks, *more
    ),
    'torch._utils._rebuild_parameter': lambda data, *more: data,
    'torch._utils._rebuild_parameter_with_state': lambda data, *more: data,
    'torch._tensor._rebuild_from_type_v2': lambda function, kind, arguments, state: call(function, arguments),
}
KNOWN.update({name: Known(name, make) for name, make in _FUNCTIONS.items()})
KNOWN.update({f'torch.{name}': value for name, value in vars(torch).items() if isinstance(value, torch.dtype)})
# A storage is named by its class, and needs but the dtype.
_DTYPES = {name: getattr(kind, '_dtype', None) for name, kind in vars(torch).items() if name.endswith('Storage')}
for _name, _dtype in {**_DTYPES, 'UntypedStorage': torch.uint8}.items():
    if isinstance(_dtype, torch.dtype) and not _name.startswith('Q'):  # quantised numbers have scales beside them
        KNOWN.update({f'{module}.{_name}': _dtype for module in ('torch', 'torch.cuda', 'torch.storage')})
