# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Reading PyTorch and MMEngine checkpoints without running anything that they hold.

``torch.load(weights_only=True)`` refuses every real MMEngine checkpoint (its ``message_hub`` holds HistoryBuffers and
numpy scalars), and MMEngine's own reader falls back to full unpickling. Here the pickle may name exactly the globals
listed below, and may set the state of exactly the kinds of object that need it.
"""
from __future__ import annotations

import importlib
import os
import pickle
import re
import types
import zipfile
from collections import Counter, OrderedDict
from typing import Any, Callable, ClassVar, Dict, Mapping, Tuple

import numpy as np
import torch

from ..errors import CheckpointError

# Names are exact: an allow-list by module prefix, or one that holds getattr, can be led to code execution.
_TORCH_GLOBALS = {
    'torch': ('FloatStorage', 'DoubleStorage', 'HalfStorage', 'BFloat16Storage', 'LongStorage', 'IntStorage',
              'ShortStorage', 'CharStorage', 'ByteStorage', 'BoolStorage', 'float32', 'float64', 'float16', 'bfloat16',
              'int64', 'int32', 'int16', 'int8', 'uint8', 'bool', 'Size', 'device'),
    'torch.storage': ('UntypedStorage', 'TypedStorage'),
    'torch._utils': ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter'),
    'torch.nn.parameter': ('Parameter',),
}
_BUILTINS = {'set': set, 'frozenset': frozenset, 'slice': slice, 'complex': complex}


class _Buffer:
    """Stands for MMEngine's HistoryBuffer while unpickling: takes its numbers, never its table of functions."""

    def __setstate__(self, state: dict) -> None:
        from mmengine.logging import HistoryBuffer
        fields = ('max_length', '_log_history', '_count_history')
        if not isinstance(state.get('max_length'), int) or not all(
                isinstance(state.get(key), np.ndarray) for key in fields[1:]):
            raise CheckpointError('it holds a damaged HistoryBuffer')
        self.__dict__.update({key: state[key] for key in fields})
        self.__class__ = HistoryBuffer  # type: ignore[assignment]
        self._set_default_statistics()  # type: ignore[attr-defined]


def _getattr(owner: Any, name: str) -> str:
    # HistoryBuffer pickles its statistics as getattr(HistoryBuffer, 'mean'); nothing else may use it.
    if owner is _Buffer and name in ('min', 'max', 'current', 'mean'):
        return name
    raise CheckpointError(f'it asks for getattr(..., {name!r}) when unpickled, which could run code')


def _encode(text: str, encoding: str) -> bytes:
    # Pickle's protocol 2 writes bytes this way.
    if encoding != 'latin1':
        raise CheckpointError(f'it holds bytes in the encoding {encoding!r}')
    return text.encode('latin1')


def _reconstruct(subtype: type, shape: Tuple[int, ...], kind: bytes) -> np.ndarray:
    # numpy always writes an empty array here and fills it by its state.
    if subtype is not np.ndarray or shape != (0,):
        raise CheckpointError('it holds an array that numpy did not write')
    return np.ndarray(shape, dtype=np.int8)


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    if dtype.hasobject or dtype.itemsize != len(data):
        raise CheckpointError('it holds a numpy scalar that numpy did not write')
    return np.frombuffer(data, dtype)[0]


def _find(module: str, name: str) -> Any:
    if name in _TORCH_GLOBALS.get(module, ()):
        return getattr(importlib.import_module(module), name)
    if module in ('builtins', '__builtin__'):
        return _getattr if name == 'getattr' else _BUILTINS[name]
    if module == 'numpy.dtypes' and re.fullmatch(r'(?:U?Int|Float|Bool)\d*DType', name):
        return getattr(importlib.import_module(module), name)
    return _OTHERS[module, name]


_OTHERS: Dict[Tuple[str, str], Any] = {
    ('collections', 'OrderedDict'): OrderedDict,
    ('collections', 'Counter'): Counter,  # the milestones of MultiStepLR
    ('_codecs', 'encode'): _encode,
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
    ('mmengine.logging.history_buffer', 'HistoryBuffer'): _Buffer,
    **{(core, name): function  # numpy 2 renamed its core
       for core in ('numpy.core.multiarray', 'numpy._core.multiarray')
       for name, function in (('_reconstruct', _reconstruct), ('scalar', _scalar))},
}
_STATEFUL = (_Buffer, np.ndarray, np.dtype, OrderedDict, torch.Tensor)


_PyUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _Unpickler(_PyUnpickler):
    """The pure Python unpickler, since the C one's BUILD sets attributes of whatever it is given."""

    dispatch: ClassVar[Dict[int, Any]] = dict(_PyUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _find(module, name)
        except KeyError:
            raise CheckpointError(f'it asks for {module}.{name} when unpickled, which no checkpoint needs and which '
                                  'could run code') from None

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], _STATEFUL):
            raise CheckpointError(f'it sets the state of a {type(self.stack[-2]).__name__} when unpickled')
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def _pickle_module() -> types.ModuleType:
    module = types.ModuleType('checkpoint_pickle')
    load: Callable[..., Any] = lambda file, **kwargs: _Unpickler(file, **kwargs).load()  # noqa: E731
    module.Unpickler, module.load = _Unpickler, load  # type: ignore[attr-defined]
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
    path = os.path.expanduser(os.fspath(path))
    if not os.path.isfile(path):
        raise CheckpointError(f'there is no file {path!r}: give the path of a checkpoint')
    try:
        _check_container(path)
        loaded = torch.load(path, map_location=map_location, pickle_module=_pickle_module(), weights_only=False)
    except CheckpointError as error:
        raise CheckpointError(f'{path} was not loaded: {error}') from error
    except MemoryError:
        raise
    except Exception as error:  # torch, zipfile and pickle raise a dozen kinds for a damaged file
        details = str(error).splitlines()[0] if str(error) else 'no details'
        raise CheckpointError(f'{path} is no readable PyTorch checkpoint ({os.path.getsize(path)} bytes; '
                              f'{type(error).__name__}: {details}): it may be truncated or another kind of file; '
                              'save or download it again') from error
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
    if any(member.filename.endswith('constants.pkl') or '/code/' in member.filename for member in members):
        raise CheckpointError('it is a TorchScript program, not a checkpoint; save its state_dict() instead')
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError('its members are compressed, which PyTorch never writes; unpack it first')
    if sum(member.file_size for member in members) > os.path.getsize(path):
        raise CheckpointError('its members claim more bytes than the file has')
