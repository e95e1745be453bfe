# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Any checkpoint file to names and tensors, recognised by its content."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Dict, Mapping

from ..errors import CheckpointError
from .extent import check_extent
from .mxnet import is_mxnet, is_mxnet_zip, read_mxnet
from .pickled import read_pickled
from .pytorch import read_checkpoint as read_pytorch
from .safetensors import read_safetensors
from .sniff import existing_file, first_bytes, kind_of, members

META = 'meta'  # under this name the metadata of a safetensors file holds a checkpoint's meta, as JSON


@dataclass(frozen=True)
class Contents:
    """What a checkpoint file holds.

    Attributes:
        container: for people (``'safetensors file'``).
        tensors: names to tensors; what a PyTorch checkpoint has there is not checked.
        rest: everything else in the file (``meta``, ``optimizer``, ``__author__`` ...). The texts beside the tensors of
            a safetensors file are ``metadata``; a release of this package has its ``meta`` in them.
    """

    container: str
    tensors: Mapping[str, Any]
    rest: Dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: str, map_location: Any = 'cpu', key: str | None = None) -> Dict[str, Any]:
    """Any checkpoint file as MMEngine has them: ``state_dict`` and what stands beside it."""
    contents = read_tensors(path, map_location)
    return {**contents.rest, 'state_dict': contents.tensors}


def container_of(path: str) -> str:
    """What kind of file a checkpoint is, for people."""
    return read_tensors(path).container


def read_tensors(path: str, map_location: Any = 'cpu') -> Contents:
    """Read a checkpoint without running anything that it holds, whatever its name ends in.

    Args:
        path: a file of PyTorch (a checkpoint, or a bare state dict), MXNet, safetensors, or a pickle of NumPy arrays
            (Detectron2, Caffe2).
        map_location: as in ``torch.load``; PyTorch files only.

    Raises:
        CheckpointError: no such file, another kind of file (says which), or a damaged one.
    """
    path = existing_file(path)
    if is_mxnet(first_bytes(path)):
        return Contents('MXNet file', read_mxnet(path))
    kind = kind_of(path)
    if kind == 'torch':
        return _of_torch(read_pytorch(path, map_location))
    if kind == 'pickle':
        return Contents('pickle of NumPy arrays', *read_pickled(path))
    if kind == 'safetensors':
        tensors, metadata = read_safetensors(path)
        return Contents('safetensors file', tensors, _of_texts(metadata))
    names = members(path)
    if is_mxnet_zip(names):
        return Contents('MXNet file', read_mxnet(path))
    raise CheckpointError(
        f'{path} is no readable checkpoint: it is a zip archive of {", ".join(names[:5])}, '
        'which PyTorch did not write; unpack it and give the checkpoint in it'
    )


def _of_torch(checkpoint: Dict[str, Any]) -> Contents:
    tensors = checkpoint.pop('state_dict')
    if not checkpoint and isinstance(tensors, Mapping) and isinstance(tensors.get('model'), Mapping):
        # Detectron2's and torchvision's trainers put the weights there, with the optimizer beside them.
        checkpoint = {key: value for key, value in tensors.items() if key != 'model'}
        tensors = tensors['model']
    return Contents('PyTorch checkpoint', tensors, checkpoint)


def _of_texts(metadata: Mapping[str, str]) -> Dict[str, Any]:
    """What stands beside the tensors of a safetensors file, with ``meta`` where a release has it."""
    rest: Dict[str, Any] = {'metadata': dict(metadata)} if metadata else {}
    text = metadata.get(META, '')
    if text.lstrip()[:1] == '{':  # other libraries may mean anything by that name
        try:
            rest['meta'] = json.loads(text)
            check_extent(rest['meta'], len(text))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"the file's metadata has a damaged entry {META!r} ({type(error).__name__}); copy or download it again"
            ) from error
    return rest
