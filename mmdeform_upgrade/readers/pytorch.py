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
from .unpickle import DTYPES, FUNCTIONS, Unpickler

MAGIC = b'\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # a number, pickled, which the older container begins with
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

        def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
            if key not in loaded:
                data = bytearray(archive.read(f'{folder}data/{key}'))
                loaded[key] = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
            return loaded[key][: count * dtype.itemsize].view(dtype)

        return Unpickler(io.BytesIO(archive.read(main)), storage).load()


def read_older(path: str) -> Any:
    """The value in PyTorch's older container."""
    with open(path, 'rb') as file:
        return _read_older(file)


def _read_older(file: IO[bytes]) -> Any:
    _magic, _protocol, system = (Unpickler(file).load() for _ in range(3))
    if not system.get('little_endian', True):
        raise CheckpointError(_OTHER_END)
    storages: dict[str, tuple[Tensor, int]] = {}

    def storage(dtype: torch.dtype, key: str, count: int, view: Any = None) -> Tensor:
        width = dtype.itemsize
        if key not in storages:
            storages[key] = torch.empty(count * width, dtype=torch.uint8), width
        start, count = (0, count) if view is None else view[1:]
        return storages[key][0][start * width : (start + count) * width].view(dtype)

    value, keys = Unpickler(file, storage).load(), Unpickler(file).load()
    if storages.keys() != set(keys):
        raise EOFError('it has other tensors than it names')  # which would hold whatever stood in memory
    for key in keys:
        data, width = storages[key]
        count = int.from_bytes(file.read(8), 'little')
        if count * width != len(data) or file.readinto(data.numpy().data) != len(data):  # type: ignore[attr-defined]
            raise EOFError('it ends within a tensor')
    if file.read(1):
        raise EOFError('something stands after its end')
    return value


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *more: Any) -> Tensor:
    if any(more[2:]):  # a view of conjugated or negated numbers
        raise TypeError
    try:
        return storage.as_strided(size, stride, storage.storage_offset() + offset)
    except RuntimeError as error:
        raise CheckpointError(f'a tensor lies outside of its storage ({str(error).splitlines()[0]})') from error


def _from_device(data: Any, dtype: torch.dtype, *more: Any) -> Tensor:
    """Of devices without storages, such as TPUs."""
    return torch.as_tensor(data).to(dtype)


_TENSORS: dict[str, Callable[..., Any]] = {
    'torch.Size': torch.Size,
    'torch.device': torch.device,
    'torch.storage._load_from_bytes': lambda data: _read_older(io.BytesIO(data)),  # tensors in a pickle
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': lambda storage, offset, size, stride, grad, hooks, dtype, *more: _tensor(
        storage.view(dtype), offset, size, stride, grad, hooks, *more
    ),
    'torch._utils._rebuild_device_tensor_from_cpu_tensor': _from_device,
    'torch._utils._rebuild_device_tensor_from_numpy': _from_device,
    'torch._utils._rebuild_xla_tensor': _from_device,  # its older name
    'torch._utils._rebuild_parameter': lambda data, *more: data,
    'torch._utils._rebuild_parameter_with_state': lambda data, *more: data,
    'torch._tensor._rebuild_from_type_v2': lambda function, kind, arguments, state: function(*arguments),
}
FUNCTIONS.update(_TENSORS)
DTYPES.update({f'torch.{name}': value for name, value in vars(torch).items() if isinstance(value, torch.dtype)})
# A storage is named by its class, and needs but the dtype; quantised tensors are not made, so theirs need but the size.
_PLAIN = {
    'UntypedStorage': torch.uint8,
    'QUInt8Storage': torch.uint8,
    'QInt8Storage': torch.int8,
    'QInt32Storage': torch.int32,
}
for _name, _kind in vars(torch).items():
    _dtype = _PLAIN.get(_name, getattr(_kind, '_dtype', None))
    if _name.endswith('Storage') and isinstance(_dtype, torch.dtype):
        DTYPES.update({f'{module}.{_name}': _dtype for module in ('torch', 'torch.cuda', 'torch.storage')})
