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

from ..errors import CheckpointError, listed
from .kinds import kind_of, split_key
from .mxnet import read_mxnet
from .pytorch import read_older, read_zip
from .safetensors import read_safetensors
from .unpickle import Inert, read_pickle

_READERS = {
    'PyTorch checkpoint': read_zip,
    'older PyTorch checkpoint': read_older,
    'pickle': read_pickle,
    'safetensors file': read_safetensors,
    'MXNet file': read_mxnet,
}
_USUAL_KEYS = ('state_dict', 'model', 'blobs')  # MMEngine's, Lightning's; Detectron2's, torchvision's; Detectron's


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
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError(f'the checkpoint is given as a {type(path).__name__}, expected the path of a file')
    path, chosen = split_key(path)
    if os.path.isdir(path):
        raise CheckpointError(f'{path!r} is a folder: give the path of a checkpoint in it')
    if not os.path.isfile(path):
        raise CheckpointError(f'there is no file {path!r}: give the path of a checkpoint')
    try:
        return _checkpoint(_READERS[kind_of(path)](path), key or chosen)
    except Exception as error:
        why = str(error)
        if not isinstance(error, CheckpointError):  # zipfile, pickle, numpy and torch raise a dozen kinds for damage
            details = f'{type(error).__name__}: {why.splitlines()[0] if why else "no details"}'
            why = f'it is truncated or damaged ({details}); copy or download it again'
        raise CheckpointError(f'{path} is no readable checkpoint ({os.path.getsize(path)} bytes): {why}') from error


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


def _checkpoint(loaded: Any, key: str | None) -> dict[str, Any]:
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f'it holds {_described(loaded)}, expected a dict with a state_dict')
    key = key or _weights_key(loaded)
    weights = _under(loaded, key) if key else loaded
    where = f' under {key!r}' if key else ''
    if not isinstance(weights, Mapping) or not weights:
        found = 'empty' if isinstance(weights, Mapping) else _described(weights)
        raise CheckpointError(f'the state dict is {found}, expected names and tensors')
    others = {name: value for name, value in weights.items() if not (_is_array(value) and isinstance(name, str))}
    # An epoch, an author, settings. What has the name of a weight is none, nor is an unknown thing in a state dict.
    beside = {n: v for n, v in others.items() if '.' not in str(n) and not (key and isinstance(v, Inert))}
    if len(others) == len(weights):
        found = listed([f'{name} ({_described(value)})' for name, value in weights.items()], 10)
        raise CheckpointError(f'it holds no tensors{where}, only {found}; FILE::NAME.NAME chooses what is deeper')
    if odd := [f'{name} ({_described(value)})' for name, value in others.items() if name not in beside]:
        raise CheckpointError(f'expected only tensors{where}, found others at {listed(odd, 10)}; save plain ones')
    if others or any(isinstance(value, np.ndarray) for value in weights.values()):
        weights = {name: _tensor(name, value) for name, value in weights.items() if name not in beside}
    rest = {name: value for name, value in loaded.items() if key and (name != key or key == 'state_dict')}
    return {**beside, **rest, 'state_dict': weights}


def _weights_key(loaded: Mapping[Any, Any]) -> str | None:
    """The key that the weights are under, None where they are the whole."""
    found = [name for name, value in loaded.items() if _is_state_dict(value)]
    for usual in _USUAL_KEYS:
        if usual in found or (usual == 'state_dict' and usual in loaded):
            return usual
    if any(_is_array(value) and value.ndim and '.' in str(name) for name, value in loaded.items()):
        found.append(None)
    if len(found) > 1:
        raise CheckpointError(
            f'weights may be under {" or ".join("no key" if name is None else repr(name) for name in found)}: '
            'choose with FILE::NAME, or --key NAME'
        )
    return found[0] if found else None


def _is_state_dict(value: Any) -> bool:
    """Whether it can be nothing but weights: names, most of them of tensors, of these one of real numbers."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    arrays = [entry for entry in value.values() if _is_array(entry)]
    real = any(entry.ndim and 'float' in str(entry.dtype) for entry in arrays)
    return real and 2 * len(arrays) > len(value)


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _described(value: Any) -> str:
    if isinstance(value, Inert) and isinstance(value.state, Mapping) and '_parameters' in value.state:
        return (
            f'a whole network ({value.name}), pickled with its code, which is not run: where it can be built, save its '
            'weights alone: torch.save(model.state_dict(), PATH)'
        )
    return repr(value) if isinstance(value, Inert) else f'a {type(value).__name__}'


def _under(loaded: Mapping[Any, Any], key: str) -> Any:
    value: Any = loaded
    for part in [key] if key in loaded else key.split('.'):
        if not isinstance(value, Mapping) or part not in value:
            raise CheckpointError(f'it has nothing under {key!r}, only {listed(list(loaded), 10)}')
        value = value[part]
    return value


def _tensor(name: Any, value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    try:
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder('='), order='C'))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f'{name} is an array of {value.dtype}, which is no tensor') from error
