# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Adapters: offset branches of a baseline, read from small files and switched at run time.

A delta is a safetensors file of what an upgrade changed against its baseline; an adapter is a delta of offset branches
alone. Names are beside those of peft.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import DELTA, StateDict, is_delta, is_offset_key
from ..errors import CheckpointError, UpgradeError
from ..layers import ZeroOffsetDCN, upgraded_layers
from ..readers import read_checkpoint
from ..targets import check_module
from ..upgrade import replace_modules

COUNTER = 'num_batches_tracked'
_ATTRIBUTE = '_offset_switch'


def load_adapter(model: nn.Module, path: str, name: str | None = None) -> str:
    """Put an adapter's offsets on its baseline, and switch them on. Weights and statistics are not touched.

    Args:
        model: the baseline as its own config builds it, with its weights loaded, or an upgrade of it. The offsets of an
            upgrade stay at hand as the adapter ``'default'``. It may be inside of ``DataParallel``,
            ``DistributedDataParallel`` or a compiled module.
        path: file of ``tools/model_converters/delta.py make``.
        name: what :func:`set_adapter` calls it; the file's name without its ending by default.

    Returns:
        The adapter's name.

    Raises:
        CheckpointError: the file is damaged or no adapter, or belongs to another baseline or other layers. The model
            was left as it was.
    """
    network, delta = _network(model), read_delta(path)
    modules: Any = dict(network.named_modules())
    found = _layers_of(path, delta['state_dict'])
    layers = {layer: tensors for layer, tensors in found.items() if layer in modules}  # of shared ones one
    name = os.path.splitext(os.path.basename(path))[0] if name is None else name
    switch = _switch_for(network, path, delta['metadata'], layers)
    if name in switch.adapters:
        raise CheckpointError(f'an adapter called {name!r} is loaded already: give this one another name=...')
    baseline = {layer: switch.baseline.get(layer, modules[layer]) for layer in layers}
    switch.adapters[name] = {layer: _twin(baseline[layer], tensors) for layer, tensors in layers.items()}
    switch.baseline.update(baseline)
    setattr(network, _ATTRIBUTE, switch)
    switch.put(network, name)
    return name


def set_adapter(model: nn.Module, name: str | None) -> None:
    """Compute with the offsets of one loaded adapter; with None, as the baseline.

    ``state_dict()`` holds the tensors of what is switched on.

    Raises:
        UpgradeError: the model has no adapter of that name.
    """
    network = _network(model)
    switch = _switch(network)
    if name is not None and name not in switch.adapters:
        raise UpgradeError(f'there is no adapter {name!r}: {", ".join(map(repr, switch.adapters))} are loaded')
    switch.put(network, name)


@contextmanager
def disable_adapter(model: nn.Module) -> Iterator[nn.Module]:
    """Within the context the model is its baseline, whose output it gives to the bit.

    Raises:
        UpgradeError: the model has neither an adapter nor an upgraded layer.
    """
    before = _switch(_network(model)).active
    set_adapter(model, None)
    try:
        yield model
    finally:
        set_adapter(model, before)


@dataclass
class _Switch:
    """The baseline's convolutions of a network, and by adapter the deformable layers that take their places.

    ``own`` are the layers of a network that was upgraded already, ``found`` all deformable layers that the switch has left.
    """

    baseline: dict[str, nn.Conv2d] = field(default_factory=dict)
    adapters: dict[str, dict[str, ZeroOffsetDCN]] = field(default_factory=dict)
    own: dict[str, ZeroOffsetDCN] = field(default_factory=dict)
    active: str | None = None
    found: dict[str, ZeroOffsetDCN] = field(default_factory=dict)

    @classmethod
    def of(cls, network: nn.Module, only: Any = None) -> _Switch:
        """That of a network whose upgraded layers are, or of which ``only`` some are, an adapter already."""
        found = upgraded_layers(network)
        own = {name: layer for name, layer in found.items() if only is None or name in only}
        plain = {name: layer.to_conv(force=True) for name, layer in own.items()}
        return cls(plain, {'default': own}, own, 'default', found) if own else cls(found=found)

    def put(self, network: nn.Module, name: str | None) -> None:
        """Put an adapter's layers in their places, or the baseline's."""
        modules: Any = dict(network.named_modules())
        new: dict[nn.Module, nn.Module] = {}
        for layer, plain in self.baseline.items():
            before = modules[layer]
            after = plain if name is None else self.adapters[name].get(layer, plain)
            if after is before:
                continue
            # The layer that was on may have been moved, converted or loaded anew meanwhile.
            after.weight, after.bias = before.weight, before.bias
            if isinstance(after, ZeroOffsetDCN):
                after.conv_offset.to(before.weight)
            new[before] = after.train(before.training)
        replace_modules(network, new)
        self.active, self.found = name, upgraded_layers(network)

    def baseline_sha256(self, network: nn.Module) -> str:
        """The digest of the network with the baseline's layers in their places."""
        active = self.active
        self.put(network, None)
        try:
            return baseline_sha256(network.state_dict())
        finally:
            self.put(network, active)


def _network(model: nn.Module) -> nn.Module:
    """What is inside of PyTorch's wrappers."""
    check_module(model)
    wrapped = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    inner = model._modules.get('module' if wrapped else '_orig_mod')  # the latter of torch.compile
    return model if inner is None else _network(inner)


def _known(network: nn.Module) -> _Switch | None:
    """The switch that a network has, unless its layers were upgraded or reverted since."""
    switch: _Switch | None = vars(network).get(_ATTRIBUTE)
    if switch is None or switch.found == upgraded_layers(network):
        return switch
    if switch.active == 'default' and len(switch.adapters) == 1:
        return None
    raise UpgradeError(
        f'{type(network).__name__} has been upgraded or reverted while its adapters {", ".join(map(repr, switch.adapters))} '
        'were loaded: do that before, or outside of disable_adapter'
    )


def _switch(network: nn.Module) -> _Switch:
    switch = _known(network) or _Switch.of(network)
    if not switch.baseline:
        raise UpgradeError(f'{type(network).__name__} has no adapter and no upgraded layer: call load_adapter first')
    setattr(network, _ATTRIBUTE, switch)
    return switch


def _switch_for(network: nn.Module, path: str, metadata: Mapping[str, str], layers: Mapping[str, StateDict]) -> _Switch:
    """The switch of a network that holds an adapter's baseline: as it is, or under its upgraded layers."""
    known, expected = _known(network), metadata.get('baseline_tensors_sha256')
    candidates = [known] if known else [_Switch(), _Switch.of(network, layers), _Switch.of(network)]
    switch = next((switch for switch in candidates if switch.baseline_sha256(network) == expected), None)
    if switch is None:
        raise CheckpointError(
            f'the network does not hold the baseline of {path}, which is {metadata.get("baseline")!r}:\n'
            f'  sha256 over its tensors: {candidates[-1].baseline_sha256(network)}, expected {expected}\n'
            'Load that checkpoint first, and adapters before the network is sharded, fused or converted to half precision.'
        )
    has = {name: layer.deform_groups for name, layer in switch.own.items()}
    if has and has != (needs := {name: _deform_groups(offsets) for name, offsets in layers.items()}):
        raise CheckpointError(
            f'{path} is an adapter of other targets: it has the layers (and deform groups) {needs}, and the '
            f'network is upgraded at {has}; load it on the network that the config of the baseline builds'
        )
    return switch


def _layers_of(path: str, tensors: StateDict) -> dict[str, StateDict]:
    """The offset branches of an adapter by layer."""
    layers: dict[str, StateDict] = {}
    others = []
    for key, tensor in tensors.items():
        layer, _, last = key.rpartition('.conv_offset.')
        if is_offset_key(key) and layer:
            layers.setdefault(layer, {})[last] = tensor
        elif not key.endswith(COUNTER):
            others.append(key)
    if others or not layers:
        raise CheckpointError(
            f'{path} is no adapter: besides offset branches it changes {len(others)} tensors '
            f'({", ".join(others[:3])}); train with TrainOffsets, or make the whole checkpoint with delta.py apply'
        )
    return layers


def _twin(conv: nn.Conv2d, offsets: StateDict) -> ZeroOffsetDCN:
    if isinstance(conv, ZeroOffsetDCN):  # of the baseline; what did not change is not in the file
        offsets = {**conv.conv_offset.state_dict(), **offsets}
        conv = conv.to_conv(force=True)
    twin = ZeroOffsetDCN.from_conv(conv, _deform_groups(offsets))
    twin.conv_offset.load_state_dict(offsets)
    return twin


def _deform_groups(offsets: StateDict) -> int:
    channels, _, kh, kw = offsets['weight'].shape  # (2GK, C, kh, kw)
    return channels // (2 * kh * kw)


def read_delta(path: str) -> dict[str, Any]:
    """A delta file, as read, and checked to hold what was written.

    Raises:
        CheckpointError: it is no delta, or damaged.
    """
    contents = read_checkpoint(path)
    metadata = contents.get('metadata') or {}
    if not is_delta(contents):
        raise CheckpointError(
            f'{path} is no delta ({DELTA!r} expected in its metadata, found {metadata.get("kind")!r}); '
            'make one with tools/model_converters/delta.py make'
        )
    found, expected = contents_sha256(contents['state_dict'], metadata), metadata.get('contents_sha256')
    if found != expected:
        raise CheckpointError(
            f'{path} is damaged: its contents have the sha256 {found}, expected {expected}; copy or download it again'
        )
    return contents


def contents_sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Hex digest over everything in a delta file but the digest itself."""
    texts = {key: text for key, text in metadata.items() if key != 'contents_sha256'}
    return hashlib.sha256((tensors_sha256(tensors) + json.dumps(texts, sort_keys=True)).encode()).hexdigest()


def baseline_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest over a baseline's values, the same in its file and in a network that has loaded it.

    A network may hold half-precision values in single precision, and counters of batch norms that a file lacks.
    """
    values = {key: value for key, value in tensors.items() if not key.endswith(COUNTER)}
    return tensors_sha256({key: value.float() if value.is_floating_point() else value for key, value in values.items()})


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest over names, dtypes, shapes and bytes; the order of the names does not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f'{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0'.encode())
        digest.update(as_bytes(tensor).numpy().data)
    return digest.hexdigest()


def as_bytes(tensor: Tensor) -> Tensor:
    """Its bytes, (numel * itemsize), on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
