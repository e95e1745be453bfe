# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The unpickler behind every reader: it calls the functions listed here and nothing else.

A pickle is a program. Names that it may mention are exact: an allow-list by module prefix, or one that holds
``getattr``, can be led to code execution. What it may *call* is a :class:`Callee`, and each checks its arguments; what
it may produce is bounded by the size of the file, since a few bytes can ask for an array of any size.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter, OrderedDict
from math import prod
from typing import Any, Callable, ClassVar, Dict, List, Tuple

import numpy as np

from ..errors import CheckpointError
from .extent import check_extent

_PyUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]
_KEYS = (str, int, float, complex, bytes, type(None), np.generic)
_PLAIN_DTYPE = re.compile(r'[<>=|]?(?:[biuf](?:1|2|4|8)|c(?:8|16)|b1|\?|[SU]\d{1,6})')


class Callee:
    """A function that a pickle may call; it is given the unpickler first, and is not callable in any other way."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function


class SafeUnpickler(_PyUnpickler):
    """The pure Python unpickler, restricted. (The C one's BUILD sets attributes of whatever it is given.)

    Args:
        file: of bytes; no length in it makes a buffer beyond the file's size.
        size: bytes of the file; what is produced may be about twice that.
    """

    known: ClassVar[Dict[Tuple[str, str], Any]] = {}
    instantiable: ClassVar[Tuple[type, ...]] = ()
    setters: ClassVar[Dict[type, Callable[[Any, Any, Any], None]]] = {}
    dispatch: ClassVar[Dict[int, Any]] = dict(_PyUnpickler.dispatch)

    def __init__(self, file: Any, *, size: int, **options: Any):
        super().__init__(file, **options)
        self._size = size
        self._file_read: Callable[[int], bytes] = self._bounded(file.read)
        self._left = 2 * size + 4096  # text is decoded once and its bytes copied once

    def _bounded(self, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
        # A file on disk makes a buffer of any length that is asked for before it looks for its end.
        def bounded(amount: int) -> bytes:
            if amount > self._size:
                raise CheckpointError('it claims more data than the file has')
            return read(amount)

        return bounded

    def load(self) -> Any:
        """The value that the pickle describes; it can be walked through."""
        value = super().load()
        check_extent(value, self._size)
        return value

    def claim(self, amount: int) -> None:
        """Count bytes or elements that are about to be made."""
        self._left -= amount
        if amount < 0 or self._left < 0:
            raise CheckpointError('it claims more data than the file has')

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.known[module, name]
        except KeyError:
            raise CheckpointError(
                f'it asks for {module}.{name} when unpickled, which no checkpoint needs and which could run code'
            ) from None

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, Callee) or not isinstance(arguments, tuple):
            raise CheckpointError(f'it asks for a call of {_name(function)} when unpickled')
        self.stack[-1] = function.function(self, *arguments)

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack.pop()
        if kind not in self.instantiable or arguments != ():
            raise CheckpointError(f'it asks for an object of {_name(kind)} when unpickled')
        self.append(kind())

    def load_build(self) -> None:
        state = self.stack.pop()
        instance = self.stack[-1]
        for kind, setter in self.setters.items():
            if isinstance(instance, kind):
                setter(self, instance, state)
                return
        raise CheckpointError(f'it sets the state of a {type(instance).__name__} when unpickled')

    def load_bytearray8(self) -> None:
        data = self.read(int.from_bytes(self.read(8), 'little'))
        self.append(bytearray(data))

    def load_setitem(self) -> None:
        value = self.stack.pop()
        _fill(self.stack[-2], [self.stack.pop(), value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _fill(self.stack[-1], items)

    def load_dict(self) -> None:
        made: Dict[Any, Any] = {}
        _fill(made, self.pop_mark())
        self.append(made)

    def load_additems(self) -> None:
        items = self.pop_mark()
        if not isinstance(self.stack[-1], set):
            raise CheckpointError(f'it adds items to a {type(self.stack[-1]).__name__} when unpickled')
        self.stack[-1].update(_keys(items))

    def load_frozenset(self) -> None:
        self.append(frozenset(_keys(self.pop_mark())))

    def refuse(self) -> None:
        raise CheckpointError('it makes objects in a way that no checkpoint needs and that could run code')

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset
    for _opcode in (
        pickle.INST,
        pickle.OBJ,
        pickle.NEWOBJ_EX,
        pickle.EXT1,
        pickle.EXT2,
        pickle.EXT4,
        pickle.NEXT_BUFFER,
        pickle.READONLY_BUFFER,
    ):
        dispatch[_opcode[0]] = refuse


def _name(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else f'a {type(value).__name__}'


def _keys(items: List[Any]) -> List[Any]:
    for item in items:
        # Hashing a deeply nested tuple overflows the C stack.
        for part in item if type(item) is tuple else (item,):
            if not isinstance(part, _KEYS):
                raise CheckpointError(f'it has a key that is a {type(item).__name__}')
    return items


def _fill(target: Any, items: List[Any]) -> None:
    if not isinstance(target, dict):
        raise CheckpointError(f'it sets items of a {type(target).__name__} when unpickled')
    if len(items) % 2:
        raise CheckpointError('it has a key without a value')
    for key, value in zip(_keys(items[::2]), items[1::2], strict=True):
        target[key] = value


def _collection(kind: Callable[..., Any]) -> Callee:

    def make(unpickler: SafeUnpickler, items: Any = ()) -> Any:
        unpickler.claim(len(items))
        if isinstance(items, dict):
            return kind(items)
        pairs = kind is OrderedDict
        _keys([pair[0] for pair in items] if pairs else list(items))
        return kind(items)

    return Callee(make)


def _encode(unpickler: SafeUnpickler, text: str, encoding: str) -> bytes:
    # Pickle's protocol 2 writes bytes this way.
    if encoding != 'latin1':
        raise CheckpointError(f'it holds bytes in the encoding {encoding!r}')
    unpickler.claim(len(text))
    return text.encode('latin1')


def _empty_bytes(unpickler: SafeUnpickler) -> bytes:
    return b''


class ArrayType:
    """Stands for ``numpy.ndarray`` where a pickle names it: calling the real one makes an array of any size."""


def _reconstruct(unpickler: SafeUnpickler, subtype: Any, shape: Any, kind: Any) -> np.ndarray:
    # numpy always writes an empty array here and fills it by its state.
    if subtype is not ArrayType or shape != (0,):
        raise CheckpointError('it holds an array that numpy did not write')
    return np.ndarray((0,), dtype=np.int8)


def _set_array(unpickler: SafeUnpickler, array: np.ndarray, state: Any) -> None:
    shape, dtype, fortran, raw = state[-4:]
    if isinstance(raw, str):
        raw = raw.encode('latin1')  # bytes of Python 2
    _check_array(unpickler, shape, dtype, raw)
    array.__setstate__((shape, dtype, bool(fortran), bytes(raw)))  # type: ignore[arg-type]


def _check_array(unpickler: SafeUnpickler, shape: Any, dtype: Any, raw: Any) -> None:
    if (
        not isinstance(dtype, np.dtype)
        or dtype.hasobject
        or not isinstance(raw, (bytes, bytearray))
        or type(shape) is not tuple
        or not all(type(size) is int and size >= 0 for size in shape)
    ):
        raise CheckpointError('it holds an array that numpy did not write, or one of objects')
    if prod(shape) * dtype.itemsize != len(raw):
        raise CheckpointError(f'it holds an array of shape {str(shape)[:80]} and {dtype} with {len(raw)} bytes')
    unpickler.claim(len(raw))


def _from_buffer(unpickler: SafeUnpickler, raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    _check_array(unpickler, shape, dtype, raw)
    return np.frombuffer(raw, dtype).reshape(shape, order='F' if order == 'F' else 'C')


def _dtype(unpickler: SafeUnpickler, text: Any, align: Any = False, copy: Any = True) -> np.dtype:
    if not isinstance(text, str) or not _PLAIN_DTYPE.fullmatch(text):
        raise CheckpointError(f'it holds an array of the kind {str(text)[:40]!r}')
    return np.dtype(text, False, True)  # type: ignore[call-overload]  # a copy: its state is set next


def _set_dtype(unpickler: SafeUnpickler, dtype: np.dtype, state: Any) -> None:
    # (version, byte order, subarray, names, fields, sizes and flags)
    if (
        not isinstance(state, tuple)
        or any(part is not None for part in state[2:5])
        or not all(type(part) is int for part in (state[0], *state[5:]))
        or dtype is np.dtype(dtype.str)
    ):
        raise CheckpointError('it holds an array of a kind that numpy did not write')
    dtype.__setstate__(state)  # type: ignore[attr-defined]


def _scalar(unpickler: SafeUnpickler, dtype: Any, data: Any) -> Any:
    data = data.encode('latin1') if isinstance(data, str) else data
    _check_array(unpickler, (), dtype, data)
    return np.frombuffer(data, dtype)[0]


def _set_ordered(unpickler: SafeUnpickler, mapping: OrderedDict, state: Any) -> None:
    # The versions of a module's state dict; any other attribute could stand in for one of its methods.
    if not isinstance(state, dict) or set(state) - {'_metadata'}:
        raise CheckpointError('it sets the state of an OrderedDict when unpickled')
    mapping.__dict__.update(state)


def _dtype_class(kind: Callable[[], Any]) -> Callee:
    return Callee(lambda unpickler: kind())


def _names() -> Dict[Tuple[str, str], Any]:
    names: Dict[Tuple[str, str], Any] = {
        ('collections', 'OrderedDict'): _collection(OrderedDict),
        ('collections', 'Counter'): _collection(Counter),  # the milestones of MultiStepLR
        ('_codecs', 'encode'): Callee(_encode),
        ('numpy', 'ndarray'): ArrayType,
        ('numpy', 'dtype'): Callee(_dtype),
    }
    for builtins in ('builtins', '__builtin__'):
        names.update(
            {
                (builtins, 'set'): _collection(set),
                (builtins, 'frozenset'): _collection(frozenset),
                (builtins, 'slice'): Callee(lambda unpickler, *limits: slice(*limits)),
                (builtins, 'complex'): Callee(lambda unpickler, real, imaginary: complex(real, imaginary)),
                (builtins, 'bytes'): Callee(_empty_bytes),
            }
        )
    for core in ('numpy.core', 'numpy._core'):  # numpy 2 renamed its core
        names.update(
            {
                (f'{core}.multiarray', '_reconstruct'): Callee(_reconstruct),
                (f'{core}.multiarray', 'scalar'): Callee(_scalar),
                (f'{core}.numeric', '_frombuffer'): Callee(_from_buffer),
            }
        )
    for name, kind in vars(np.dtypes).items() if hasattr(np, 'dtypes') else ():  # since numpy 1.25
        if re.fullmatch(r'(?:U?Int|Float|Bool)\d*DType', name):
            names['numpy.dtypes', name] = _dtype_class(kind)
    return names


SafeUnpickler.known = _names()
SafeUnpickler.setters = {np.ndarray: _set_array, np.dtype: _set_dtype, OrderedDict: _set_ordered}
