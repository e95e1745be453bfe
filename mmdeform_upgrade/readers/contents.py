# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Any checkpoint file to one shape: the dict that MMEngine's own files hold."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from .mxnet import read_mxnet
from .pytorch import MAGIC, read_legacy, read_zip
from .safetensors import meta_of, read_safetensors
from .sniff import existing_file, kind_of
from .unpickle import Inert, Unpickler

_USUAL_KEYS = (
    'state_dict',
    'model',
    'blobs',
)  # MMEngine's and Lightning's; Detectron2's and torchvision's; Detectron's


def read_checkpoint(path: str, *, key: str | None = None) -> dict[str, Any]:
    """Read a checkpoint without running anything that it holds, whatever its name ends in.

    Args:
        path: a file of PyTorch (a checkpoint, or a bare state dict), MXNet, safetensors, or a pickle of arrays or tensors;
            ``FILE::KEY`` also says where in it the weights are.
        key: the same (``'ema'``, ``'ema.state_dict'``), needed only where it is not unmistakable.

    Returns:
        ``state_dict``, names to CPU tensors, and everything else that the file has beside it (``meta``, ``optimizer``,
        ``epoch`` ...); objects that the reader does not know are :class:`Inert`. The texts beside the tensors of a
        safetensors file are ``metadata``.

    Raises:
        CheckpointError: no such file, another kind of file (says which), a damaged one, or one without weights.
    """
    return read_contents(path, key)[1]


def read_contents(path: str, key: str | None = None) -> tuple[str, dict[str, Any]]:
    """As :func:`read_checkpoint`, with what kind of file it is, for people."""
    path, chosen = existing_file(path)
    size = os.path.getsize(path)
    try:
        kind, value = _load(path, size)
        return kind, _checkpoint(value, key or chosen)
    except CheckpointError as error:
        raise CheckpointError(f'{path} is no readable checkpoint ({size} bytes): {error}') from error
    except Exception as error:  # zipfile, pickle, numpy and torch raise a dozen kinds for a damaged file
        details = str(error).splitlines()[0] if str(error) else 'no details'
        raise CheckpointError(
            f'{path} is no readable checkpoint ({size} bytes): it is truncated or damaged ({type(error).__name__}: '
            f'{details}); copy or download it again'
        ) from error


def drop_inert(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Take out of all dicts what the reader did not know, so that whoever loads them keeps its own (its functions)."""
    todo, seen = deque([checkpoint]), set()
    while todo:
        value = todo.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            for key in [key for key, entry in value.items() if isinstance(key, Inert) or isinstance(entry, Inert)]:
                del value[key]
            todo.extend(value.values())
        elif isinstance(value, (list, tuple, deque)):
            todo.extend(value)
    return checkpoint


def _load(path: str, size: int) -> tuple[str, Any]:
    kind = kind_of(path)
    if kind == 'zip':
        return 'PyTorch checkpoint', read_zip(path)
    if kind == 'safetensors':
        tensors, metadata = read_safetensors(path)
        return 'safetensors file', {**meta_of(metadata), 'state_dict': tensors}
    if kind == 'MXNet':
        return 'MXNet file', read_mxnet(path)
    with open(path, 'rb') as file:
        value = Unpickler(file).load()
        if isinstance(value, int) and value == MAGIC:
            return 'PyTorch checkpoint', read_legacy(file, size)
        if left := len(file.read()):
            raise CheckpointError(f'{left} bytes stand after the end of its pickle, so it is damaged')
    return 'pickle', value


def _checkpoint(loaded: Any, key: str | None) -> dict[str, Any]:
    _refuse_network(loaded, 'it is')
    if not isinstance(loaded, Mapping):
        found = repr(loaded) if isinstance(loaded, Inert) else f'a {type(loaded).__name__}'
        raise CheckpointError(f'it holds {found}, expected a dict with a state_dict')
    key = key or _weights_key(loaded)
    weights = _under(loaded, key) if key else loaded
    _refuse_network(weights, f'under {key!r} it holds')
    rest = {name: value for name, value in loaded.items() if key and (name != key or key == 'state_dict')}
    if not isinstance(weights, Mapping) or not weights:
        found = 'empty' if isinstance(weights, Mapping) else f'a {type(weights).__name__}'
        raise CheckpointError(f'the state dict is {found}, expected names and tensors')
    # An epoch, an author, settings. What has the name of a weight stays, for whoever checks the weights to refuse.
    beside = [name for name, value in weights.items() if not _is_array(value) and '.' not in str(name)]
    where = f' under {key!r}' if key else ''
    if len(beside) == len(weights):
        raise CheckpointError(
            f'it holds no tensors{where}, only {_names(weights)}; FILE::NAME.NAME chooses what is deeper'
        )
    others = [
        f'{name} ({value if isinstance(value, Inert) else type(value).__name__})'
        for name, value in weights.items()
        if not _is_array(value) and (name not in beside or (key and isinstance(value, Inert)))
    ]
    if others:
        raise CheckpointError(
            f'expected only tensors{where}, found others at {", ".join(others[:10])}; save plain ones'
        )
    rest = {**{name: weights[name] for name in beside}, **rest}
    if beside or any(isinstance(value, np.ndarray) for value in weights.values()):
        weights = {name: _tensor(name, value) for name, value in weights.items() if name not in beside}
    return {**rest, 'state_dict': weights}


def _weights_key(loaded: Mapping[Any, Any]) -> str | None:
    """The key that the weights are under, None where they are the whole."""
    found = [name for name, value in loaded.items() if _is_state_dict(value)]
    for usual in _USUAL_KEYS:
        if usual in found or (usual == 'state_dict' and usual in loaded):
            return usual
    if any(_is_array(value) and value.ndim for value in loaded.values()):
        found.append(None)
    if len(found) == 1:
        return found[0]
    for name, value in loaded.items():
        _refuse_network(value, f'under {name!r} it holds')
    if found:
        raise CheckpointError(
            f'weights may be under {" or ".join("no key" if name is None else repr(name) for name in found)}: '
            'choose with FILE::NAME, or --key NAME'
        )
    return None


def _is_state_dict(value: Any) -> bool:
    """Whether it can be nothing but weights: names, most of them of tensors, of these one of real numbers."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    arrays = [entry for entry in value.values() if _is_array(entry)]
    real = any(entry.ndim and 'float' in str(entry.dtype) for entry in arrays)
    return real and 2 * len(arrays) > len(value)


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _under(loaded: Mapping[Any, Any], key: str) -> Any:
    value: Any = loaded
    for part in [key] if key in loaded else key.split('.'):
        if not isinstance(value, Mapping) or part not in value:
            raise CheckpointError(f'it has nothing under {key!r}, only {_names(loaded)}')
        value = value[part]
    return value


def _refuse_network(value: Any, where: str) -> None:
    if isinstance(value, Inert) and isinstance(value.state, Mapping) and '_parameters' in value.state:
        raise CheckpointError(
            f'{where} a whole network ({value.name}), pickled with its code, which is not run; where it can be built, '
            'save its weights alone: torch.save(model.state_dict(), PATH)'
        )


def _names(mapping: Mapping[Any, Any]) -> str:
    return ', '.join(map(str, list(mapping)[:10])) + (' ...' if len(mapping) > 10 else '')


def _tensor(name: Any, value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    try:
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder('='), order='C'))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f'{name} is an array of {value.dtype}, which is no tensor') from error
