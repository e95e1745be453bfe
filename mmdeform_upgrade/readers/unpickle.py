# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The unpickler behind every reader: a pickle is a program, and here it can only make values.

Every name becomes an :class:`Inert`, and so does whatever is made with it, but for the names of ``FUNCTIONS``: nothing
else is imported or called. Only where an inert object stands among the weights does a load fail.
"""

from __future__ import annotations

import datetime
import pickle
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from math import prod
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, ClassVar

import numpy as np

from ..errors import CheckpointError

_MOVED = {'__builtin__.': 'builtins.', 'copy_reg.': 'copyreg.', 'numpy._core.': 'numpy.core.', '._local.': '.'}
_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_PyUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class Inert:
    """An object that a file describes and the reader does not know: its name and its state, no code.

    Attributes:
        name: of the class or function, as in ``'argparse.Namespace'``.
        state: what its attributes were to be.
    """

    __slots__ = ('name', 'state')

    def __init__(self, name: str):
        self.name, self.state = name, None

    def __repr__(self) -> str:
        return f'<{self.name}, not loaded>'

    def _ignored(self, *items: Any) -> None:
        """What a file puts into it."""

    append = extend = add = __setitem__ = _ignored

    def __call__(self, *arguments: Any) -> Any:
        """What a file's call of it makes: a value where it is known and takes the arguments, else another Inert."""
        try:
            return FUNCTIONS[self.name](*arguments)
        except (CheckpointError, MemoryError):
            raise
        except Exception:  # not known, or other arguments than the library writes, an Inert perhaps
            return Inert(self.name)


class Unpickler(_PyUnpickler):
    """The pure Python unpickler, since the C one sets attributes of whatever it is given.

    Args:
        file: of bytes.
        storage: what makes a tensor's storage of a persistent id, in PyTorch's files.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_PyUnpickler.dispatch)

    def __init__(self, file: Any, storage: Callable[..., Any] | None = None):
        super().__init__(file, encoding='latin1')  # of the bytes that Python 2 wrote as texts
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        name = f'{module}.{name}'
        for old, new in _MOVED.items():
            name = name.replace(old, new)
        return DTYPES.get(name) or Inert(name)

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise pickle.UnpicklingError('a storage outside of a file of PyTorch')
        kind, described, *more = pid
        if kind == 'module' or isinstance(described, Inert):  # a network's class; a storage of an unknown dtype
            return described
        key, _device, count, *view = more
        return self._storage(described, key, count, *view)

    def get_extension(self, code: int) -> None:
        self.append(Inert(f'extension {code}'))

    def _instantiate(self, kind: Any, arguments: Any) -> None:  # what INST and OBJ call
        if not isinstance(kind, Inert):
            raise pickle.UnpicklingError(f'it calls a {type(kind).__name__}')
        self.append(kind(*arguments))

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self._instantiate(self.stack.pop(), arguments)

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # keywords, which no known function takes
        self.load_reduce()

    def load_build(self) -> None:
        state = self.stack.pop()
        before = self.stack[-1]
        after = self.stack[-1] = _with_state(before, state)
        if after is not before:
            index = next((index for index, value in reversed(self.memo.items()) if value is before), None)
            if index is not None:
                self.memo[index] = after

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build


def read_pickle(path: str) -> Any:
    """The value of a file that is one pickle."""
    with open(path, 'rb') as file:
        value = Unpickler(file).load()
        if left := len(file.read()):
            raise EOFError(f'{left} bytes stand after the end of its pickle')
    return value


def _with_state(value: Any, state: Any) -> Any:
    """A value after its state was set: the same object or, where it cannot be changed, another one."""
    if isinstance(value, Inert):
        value.state = state
        if value.name == _HISTORY:
            return value(state)
    elif isinstance(value, np.dtype):
        # (version, byte order, subarray, names, fields, size, alignment, flags), of which only the second is needed
        plain = len(state) == 8 and state[2:5] == (None, None, None)
        return value.newbyteorder(state[1]) if plain else Inert('numpy.dtype')
    elif isinstance(value, np.ndarray):
        shape, dtype, fortran, raw = state[-4:]
        return Inert('numpy.ndarray')(raw, dtype, shape, 'F' if fortran else 'C')
    elif isinstance(value, OrderedDict) and isinstance(state, dict) and '_metadata' in state:
        value._metadata = state['_metadata']  # type: ignore[attr-defined]  # the versions of a module's state dict
    return value


def _history_buffer(state: dict[str, Any]) -> Any:
    from mmengine.logging import HistoryBuffer  # without the functions that are in its state

    return HistoryBuffer(state['_log_history'], state['_count_history'], state['max_length'])


def _array(raw: Any, dtype: np.dtype, shape: tuple[int, ...], order: Any = 'C') -> np.ndarray:
    if dtype.hasobject:  # whose bytes would be addresses
        raise TypeError
    data = bytearray(raw.encode('latin1') if isinstance(raw, str) else raw)
    if prod(shape) * dtype.itemsize != len(data):
        raise CheckpointError(f'it holds an array of shape {str(shape)[:80]} and {dtype} with {len(data)} bytes')
    return np.ndarray(shape, dtype, data, order=order)


_BUILTIN = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, range, set, slice, str, tuple)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    '_codecs.encode': lambda text, encoding: text.encode('latin1'),  # which is how protocol 2 writes bytes
    'builtins.getattr': lambda owner, name: Inert(f'{owner.name}.{name}'),  # how methods are written
    'builtins.long': int,
    'builtins.unicode': str,
    'builtins.xrange': range,
    'copyreg._reconstructor': lambda kind, *rest: Inert(kind.name),
    'collections.OrderedDict': OrderedDict,
    'collections.Counter': Counter,
    'collections.defaultdict': lambda kind=None, *items: defaultdict(kind and FUNCTIONS.get(kind.name), *items),
    'collections.deque': deque,
    'numpy.dtype': lambda text, *flags: np.dtype(str(text), copy=True),
    'numpy.core.multiarray._reconstruct': lambda kind, shape, code: np.empty(0),  # filled by its state
    'numpy.core.multiarray.scalar': lambda dtype, raw: _array(raw, dtype, ())[()],
    'numpy.core.numeric._frombuffer': _array,
    'numpy.ndarray': _array,
    _HISTORY: _history_buffer,
    **{f'builtins.{kind.__name__}': kind for kind in _BUILTIN},
    **{f'datetime.{name}': getattr(datetime, name) for name in ('date', 'datetime', 'time', 'timedelta', 'timezone')},
    **{f'pathlib.{name}Path': PurePosixPath for name in ('Posix', 'PurePosix')},
    **{f'pathlib.{name}Path': PureWindowsPath for name in ('Windows', 'PureWindows')},
    **dict.fromkeys(('mmengine.config.config.ConfigDict', 'mmcv.utils.config.ConfigDict', 'addict.addict.Dict'), dict),
}
DTYPES: dict[str, Any] = {}  # of PyTorch, by their own names and those of storages
