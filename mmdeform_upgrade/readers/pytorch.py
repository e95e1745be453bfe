# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Reading PyTorch and MMEngine checkpoints without running anything that they hold.

``torch.load(weights_only=True)`` refuses every real MMEngine checkpoint (its ``message_hub`` holds HistoryBuffers and
numpy scalars), and MMEngine's own reader falls back to full unpickling. Here the pickle may name exactly the globals
of ``unpickle.py`` and those listed below.
"""

from __future__ import annotations

import importlib
import os
import pickle
import types
import zipfile
from typing import Any, Callable, ClassVar, Dict, Mapping, Tuple

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from .sniff import check_members, existing_file
from .unpickle import Callee, SafeUnpickler

# Only mentioned by a checkpoint, never called.
_MENTIONED = {
    'torch': (
        'FloatStorage',
        'DoubleStorage',
        'HalfStorage',
        'BFloat16Storage',
        'LongStorage',
        'IntStorage',
        'ShortStorage',
        'CharStorage',
        'ByteStorage',
        'BoolStorage',
        'float32',
        'float64',
        'float16',
        'bfloat16',
        'int64',
        'int32',
        'int16',
        'int8',
        'uint8',
        'bool',
    ),
    'torch.storage': ('UntypedStorage', 'TypedStorage'),
    'torch.nn.parameter': ('Parameter',),
}


class _Buffer:
    """Stands for MMEngine's HistoryBuffer while unpickling: takes its numbers, never its table of functions."""

    def fill(self, state: Any) -> None:
        from mmengine.logging import HistoryBuffer

        fields = ('max_length', '_log_history', '_count_history')
        if (
            not isinstance(state, dict)
            or not isinstance(state.get('max_length'), int)
            or not all(isinstance(state.get(key), np.ndarray) for key in fields[1:])
        ):
            raise CheckpointError('it holds a damaged HistoryBuffer')
        self.__dict__.update({key: state[key] for key in fields})
        self.__class__ = HistoryBuffer  # type: ignore[assignment]
        self._set_default_statistics()  # type: ignore[attr-defined]


def _getattr(unpickler: SafeUnpickler, owner: Any, name: str) -> str:
    # HistoryBuffer pickles its statistics as getattr(HistoryBuffer, 'mean'); nothing else may use it.
    if owner is _Buffer and name in ('min', 'max', 'current', 'mean'):
        return name
    raise CheckpointError(f'it asks for getattr(..., {str(name)[:40]!r}) when unpickled, which could run code')


def _rebuild_tensor(
    unpickler: SafeUnpickler,
    storage: Any,
    offset: int,
    size: Any,
    stride: Any,
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    if (
        not isinstance(storage, torch.storage.TypedStorage)
        or not all(type(number) is int and number >= 0 for number in (offset, *size, *stride))
        or len(size) != len(stride)
    ):
        raise CheckpointError('it holds a tensor that PyTorch did not write')
    empty = 0 in size
    end = offset + (0 if empty else 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)))
    length = storage._untyped_storage.nbytes() // storage.dtype.itemsize
    if end > length:
        raise CheckpointError(f'it holds a tensor of shape {str(tuple(size))[:80]} in a storage of {length} values')
    tensor = torch.empty(0, dtype=storage.dtype, device=storage._untyped_storage.device)
    tensor.set_(storage._untyped_storage, offset, tuple(size), tuple(stride))
    if tensor.numel() > length:
        unpickler.claim(tensor.numel() * tensor.element_size())  # expanded: copying it makes all of it
    return tensor.requires_grad_(bool(requires_grad) and tensor.is_floating_point())


def _rebuild_parameter(unpickler: SafeUnpickler, data: Any, requires_grad: bool, hooks: Any = None) -> Tensor:
    if not isinstance(data, Tensor):
        raise CheckpointError('it holds a parameter without a tensor')
    return torch.nn.Parameter(data, bool(requires_grad) and data.is_floating_point())


def _device(unpickler: SafeUnpickler, *place: Any) -> torch.device:
    return torch.device(*place)


def _size(unpickler: SafeUnpickler, sizes: Any = ()) -> torch.Size:
    unpickler.claim(len(sizes))
    return torch.Size(sizes)


class _TorchUnpickler(SafeUnpickler):
    known: ClassVar[Dict[Tuple[str, str], Any]] = {
        **SafeUnpickler.known,
        **{
            (module, name): getattr(importlib.import_module(module), name)
            for module, names in _MENTIONED.items()
            for name in names
        },
        ('torch', 'Size'): Callee(_size),
        ('torch', 'device'): Callee(_device),
        ('torch._utils', '_rebuild_tensor'): Callee(_rebuild_tensor),
        ('torch._utils', '_rebuild_tensor_v2'): Callee(_rebuild_tensor),
        ('torch._utils', '_rebuild_parameter'): Callee(_rebuild_parameter),
        ('mmengine.logging.history_buffer', 'HistoryBuffer'): _Buffer,
        ('builtins', 'getattr'): Callee(_getattr),
        ('__builtin__', 'getattr'): Callee(_getattr),
    }
    instantiable = (_Buffer,)
    setters: ClassVar[Dict[type, Callable[[Any, Any, Any], None]]] = {
        **SafeUnpickler.setters,
        _Buffer: lambda unpickler, buffer, state: buffer.fill(state),
    }
    dispatch: ClassVar[Dict[int, Any]] = dict(SafeUnpickler.dispatch)

    def load_binpersid(self) -> None:
        # ('storage', type, key, location, numel, ...): its memory is made before its bytes are looked at.
        described = self.stack[-1]
        if not isinstance(described, tuple) or len(described) < 5 or type(described[4]) is not int:
            raise CheckpointError('it holds a storage that PyTorch did not write')
        if described[2] not in self.storages:
            self.storages.add(described[2])
            kind = getattr(described[1], 'dtype', torch.uint8)
            self.claim(described[4] * kind.itemsize)
        super().load_binpersid()

    def __init__(self, file: Any, *, size: int, **options: Any):
        super().__init__(file, size=size, **options)
        self.storages: set = set()

    dispatch[pickle.BINPERSID[0]] = load_binpersid


def _pickle_module(size: int) -> types.ModuleType:

    class Unpickler(_TorchUnpickler):
        def __init__(self, file: Any, **options: Any):
            super().__init__(file, size=size, **options)

    module = types.ModuleType('checkpoint_pickle')
    load: Callable[..., Any] = lambda file, **options: Unpickler(file, **options).load()  # noqa: E731
    module.Unpickler, module.load = Unpickler, load  # type: ignore[attr-defined]
    return module


def read_checkpoint(path: str, map_location: Any = 'cpu') -> Dict[str, Any]:
    """Read a PyTorch or MMEngine checkpoint without running anything that it holds.

    Args:
        path: a local file, in PyTorch's zip or its older format.
        map_location: as in ``torch.load``.

    Returns:
        The checkpoint as saved (``state_dict``, ``meta``, ``optimizer`` ...), or ``{'state_dict': ...}`` for a file
        that is a bare state dict.

    Raises:
        CheckpointError: no such file, no checkpoint, a truncated one, or one that would run code.
    """
    path = existing_file(path)
    try:
        _check_container(path)
        with open(path, 'rb') as file:  # by its path, PyTorch would judge it by its name
            loaded = torch.load(
                file, map_location=map_location, pickle_module=_pickle_module(os.path.getsize(path)), weights_only=False
            )
    except CheckpointError as error:
        raise CheckpointError(f'{path} was not loaded: {error}') from error
    except MemoryError:
        raise
    except Exception as error:  # torch, zipfile and pickle raise a dozen kinds for a damaged file
        details = str(error).splitlines()[0] if str(error) else 'no details'
        raise CheckpointError(
            f'{path} is no readable PyTorch checkpoint ({os.path.getsize(path)} bytes; '
            f'{type(error).__name__}: {details}): it may be truncated or another kind of file; '
            'save or download it again'
        ) from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f'{path} holds a {type(loaded).__name__}, expected a dict with a state_dict')
    return dict(loaded) if 'state_dict' in loaded else {'state_dict': loaded}


def _check_container(path: str) -> None:
    """Refuse zips that are no plain tensor archives before PyTorch opens them."""
    if not zipfile.is_zipfile(path):
        with open(path, 'rb') as file:
            if file.read(4) == b'PK\x03\x04':
                raise CheckpointError('its end is missing, so it is truncated; copy or download it again')
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    check_members(members)
    if any(member.filename.endswith('constants.pkl') or '/code/' in member.filename for member in members):
        raise CheckpointError('it is a TorchScript program, not a checkpoint; save its state_dict() instead')
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError('its members are compressed, which PyTorch never writes; unpack it first')
    if sum(member.file_size for member in members) > os.path.getsize(path):
        raise CheckpointError('its members claim more bytes than the file has')
