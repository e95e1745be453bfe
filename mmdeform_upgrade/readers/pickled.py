# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Pickles of NumPy arrays, as Detectron, Caffe2 and Detectron2 publish them, read without running anything."""

from __future__ import annotations

import io
from typing import Any, Dict, Mapping, Tuple

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from .unpickle import SafeUnpickler


def read_pickled(path: str) -> Tuple[Dict[str, Tensor], Dict[str, Any]]:
    """The arrays of a pickle, and whatever stands beside them (``__author__``, the configuration's text).

    Detectron2 puts the arrays under ``model``, Detectron under ``blobs`` and Caffe2 at the top.

    Args:
        path: a local file.

    Returns:
        names to tensors of the array's dtype, and the rest of the file.

    Raises:
        CheckpointError: it is damaged, would run code when unpickled, or holds no arrays.
    """
    with open(path, 'rb') as file:
        data = io.BytesIO(file.read())
    size = data.getbuffer().nbytes
    try:
        loaded = SafeUnpickler(data, size=size, encoding='latin1').load()
    except CheckpointError as error:
        raise CheckpointError(f'{path} was not loaded: {error}') from error
    except Exception as error:  # a damaged pickle raises a dozen kinds
        raise CheckpointError(
            f'{path} is no readable pickle ({size} bytes; {type(error).__name__}): it may be '
            'truncated or damaged; copy or download it again'
        ) from error
    if data.tell() != size:
        raise CheckpointError(f'{path}: {size - data.tell()} bytes stand after the end of its pickle, so it is damaged')
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f'{path} holds a {type(loaded).__name__}, expected names and arrays')
    return _arrays(path, loaded)


def _arrays(path: str, loaded: Mapping[Any, Any]) -> Tuple[Dict[str, Tensor], Dict[str, Any]]:
    inner = next((key for key in ('model', 'blobs') if isinstance(loaded.get(key), Mapping)), None)
    named = loaded if inner is None else loaded[inner]
    rest = {} if inner is None else {str(key): value for key, value in loaded.items() if key != inner}
    tensors: Dict[str, Tensor] = {}
    for key, value in named.items():
        if isinstance(key, str) and isinstance(value, np.ndarray):
            tensors[key] = _tensor(path, key, value)
        else:
            rest[str(key)] = value
    if not tensors:
        raise CheckpointError(f'{path} holds no arrays; its keys are {", ".join(map(str, list(loaded)[:10]))}')
    return tensors, rest


def _tensor(path: str, name: str, array: np.ndarray) -> Tensor:
    try:
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder('='), order='C'))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f'{path}: {name} is an array of {array.dtype}, which is no tensor') from error
