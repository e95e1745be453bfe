# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What GluonCV's importers share: the four ways in which MXNet names parameters, and what to do with a table of them.

The same parameter may be called (``gluon/block.py``, ``gluon/parameter.py`` of MXNet 1.x)

1. by its place in the network, ``stages.0.0.0.weight``: ``save_parameters``;
2. by its own name without the network's prefix, ``resnetv10_conv0_weight``: ``save_params``;
3. with it, ``ssd0_resnetv10_conv0_weight``: ``collect_params().save``;
4. with ``arg:`` or ``aux:`` before that: ``export``.

The number after a class counts the networks that the process had made. An SSD's backbone has names of the second kind
in all four cases, since it is one symbol; behind ``features.`` in the first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .base import Check, Imported
from .checks import flips_channels

MEAN = (123.675, 116.28, 103.53)  # RGB, of 0..255; GluonCV's presets have them of 0..1
STD = (58.395, 57.12, 57.375)

_NORM = {'gamma': 'weight', 'beta': 'bias', 'running_mean': 'running_mean', 'running_var': 'running_var'}
_SHOWN = 8
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r'^(?:arg|aux):', ''),
        (r'^features\.', ''),
        (r'^(?:ssd|yolov3)\d+_', ''),
        (r'^(resnetv1|darknetv3)\d+_', r'\1_'),
        (r'(^|_)syncbatchnorm(?=\d)', r'\1batchnorm'),
        (r'([._])moving_(?=mean$|var$)', r'\1running_'),
    )
)


def plain_name(name: str) -> str:
    """``name`` without what depends on how, when and on how many devices the network was made and saved."""
    for pattern, replacement in _REWRITES:
        name = pattern.sub(replacement, name)
    return name


@dataclass(frozen=True)
class Cell:
    """A convolution and the batch norm behind it.

    Attributes:
        conv, norm: target modules.
        source_conv, source_norm: how plain names begin, in each dialect.
        has_bias: GluonCV's convolution has a bias, mmdet's has none.
        fixed_gamma: the norm multiplies by 1, whatever gamma is stored.
    """

    conv: str
    norm: str
    source_conv: Tuple[str, ...]
    source_norm: Tuple[str, ...]
    has_bias: bool = False
    fixed_gamma: bool = False


class Conversion:
    """A file on its way to mmdet's names; collects what was done, and what is wrong."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.problems: List[str] = []
        self.missing: List[str] = []
        self._tensors = tensors
        self._state_dict: Dict[str, Tensor] = {}
        self._renamed: Dict[str, str] = {}
        self._changed: Dict[str, str] = {}
        self._dropped: Dict[str, str] = {}
        self._left: Dict[str, str] = {}  # plain name to the file's
        for source, tensor in tensors.items():
            plain = plain_name(source)
            if plain in self._left:
                self.problems.append(f'{self._left[plain]} and {source} are the same parameter')
            if not tensor.is_floating_point():
                self.problems.append(f'{source} is {tensor.dtype}, expected floats: is it a quantised network?')
            self._left[plain] = source

    @property
    def unknown(self) -> List[str]:
        """Names in the file that nothing has asked for so far."""
        return list(self._left.values())

    def take(self, names: Sequence[str], optional: bool = False) -> Optional[str]:
        """The file's name of the parameter that is called one of ``names``; each can be taken once."""
        found = [self._left.pop(name) for name in names if name in self._left]
        if not found and not optional:
            self.missing.append(names[0])
        if len(found) > 1:
            self.problems.append(f'{" and ".join(found)} are the same parameter')
        return found[0] if found else None

    def move(
        self, target: str, names: Sequence[str], how: str = '', change: Optional[Callable[[Tensor], Tensor]] = None
    ) -> None:
        """Take a parameter over as ``target``; ``how`` tells what ``change`` did to its values."""
        source = self.take(names)
        if source is None:
            return
        tensor = self._tensors[source]
        self._renamed[source] = target
        if change is not None:
            tensor = change(tensor)
            self._changed[target] = how
        self._state_dict[target] = tensor

    def drop(self, names: Sequence[str], reason: str, optional: bool = False) -> Optional[Tensor]:
        """Leave a parameter out on purpose; returns its values."""
        source = self.take(names, optional)
        if source is None:
            return None
        self._dropped[source] = reason
        return self._tensors[source]

    def move_cell(self, cell: Cell) -> None:
        self.move(f'{cell.conv}.weight', [stem + 'weight' for stem in cell.source_conv])
        for source, target in _NORM.items():
            names = [stem + source for stem in cell.source_norm]
            if source == 'gamma' and cell.fixed_gamma:
                self.drop(names, 'a norm of fix_gamma multiplies by 1 instead', optional=True)
            else:
                self.move(f'{cell.norm}.{target}', names)
        mean = self._state_dict.get(f'{cell.norm}.running_mean')
        if mean is None:
            return
        if cell.fixed_gamma:
            self._add(f'{cell.norm}.weight', torch.ones_like(mean), 'set to 1 (fix_gamma)')
        self._add(f'{cell.norm}.num_batches_tracked', torch.tensor(0), 'set to 0, as MXNet does not count')
        if cell.has_bias:
            self._fold(f'{cell.norm}.running_mean', [stem + 'bias' for stem in cell.source_conv], mean)

    def _fold(self, target: str, names: Sequence[str], mean: Tensor) -> None:
        # gamma * (conv + bias - mean) / sigma + beta: exact, and in training the batch's mean takes the bias out anyway
        source = self.take(names)
        if source is None:
            return
        bias = self._tensors[source]
        if bias.shape != mean.shape:
            self.problems.append(f'{source} has the shape {tuple(bias.shape)}, its batch norm {tuple(mean.shape)}')
            return
        self._renamed[source] = target
        self._add(target, (mean.double() - bias.double()).to(mean.dtype), "the convolution's bias subtracted")

    def _add(self, target: str, tensor: Tensor, how: str) -> None:
        self._state_dict[target], self._changed[target] = tensor, how

    def finish(self, kind: str, checks: Sequence[Check]) -> Imported:
        """The import, or one error with everything that is wrong."""
        lines = list(self.problems)
        for title, names in (('missing', self.missing), ('not part of such a network', self.unknown)):
            if names:
                shown = ', '.join(names[:_SHOWN]) + (f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else '')
                lines.append(f'{title} ({len(names)}): {shown}')
        if lines:
            raise CheckpointError('\n  '.join([f'the file looks like a {kind}, but does not fit:', *lines]))
        return Imported(kind, self._state_dict, self._renamed, self._changed, self._dropped, tuple(checks))


def check_classes(found: int) -> Check:
    """The head has to predict as many classes as the file."""

    def check(model: nn.Module) -> List[str]:
        expected = getattr(getattr(model, 'bbox_head', None), 'num_classes', None)
        if expected == found:
            return []
        return [
            f'the file was trained on {found} classes, the network has {expected}: set num_classes={found} in its '
            'bbox_head, or take the config of the other data set'
        ]

    return check


def check_eps(part: str, eps: float) -> Check:
    """Every batch norm of ``part`` has to add ``eps``, which no file holds."""

    def check(model: nn.Module) -> List[str]:
        wrong = [f'{name} with {norm.eps:g}' for name, norm in _norms(model, part) if norm.eps != eps]
        return (
            [
                f'{len(wrong)} batch norms of {part} have another eps than the {eps:g} that the file was trained with, '
                f"first {wrong[0]}: set norm_cfg=dict(type='BN', eps={eps:g})"
            ]
            if wrong
            else []
        )

    return check


def _norms(model: nn.Module, part: str) -> Iterator[Tuple[str, nn.modules.batchnorm._BatchNorm]]:
    for name, module in model.named_modules():
        if name.startswith(part + '.') and isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield name, module


def check_normalisation(model: nn.Module) -> List[str]:
    """The picture has to reach the network as GluonCV's presets send it: RGB, ImageNet's mean and deviation."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    if preprocessor is None:
        return []
    found = [getattr(preprocessor, name, None) for name in ('mean', 'std')]
    rgb = flips_channels(preprocessor)
    if rgb and all(
        value is not None and value.numel() == 3 and torch.allclose(value.flatten(), torch.tensor(expected))
        for value, expected in zip((v if v is None else v.cpu() for v in found), (MEAN, STD), strict=True)
    ):
        return []
    shown = ', '.join(
        f'{name}={None if v is None else [round(float(x), 3) for x in v.flatten()]}'
        for name, v in zip(('mean', 'std'), found, strict=True)
    )
    return [
        f'the network normalises pictures with {shown}, bgr_to_rgb={rgb}; the file was trained with '
        f'mean={list(MEAN)}, std={list(STD)}, bgr_to_rgb=True: set that in data_preprocessor'
    ]
