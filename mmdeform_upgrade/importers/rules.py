# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Key maps as data: rules from a file's names to the network's, the one conversion that applies them, and its result."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from re import Match
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, listed
from .checks import Needed, problems_of

Source = Mapping[str, Tensor]
Spellings = Sequence[tuple[str, str | Callable[[Match[str]], str]]]
_OPERATORS = {'+': operator.add, '-': operator.sub, '/': operator.floordiv, '%': operator.mod}


@dataclass(frozen=True)
class Imported:
    """A baseline under mmdet's or mmseg's names, and what was done to get there."""

    format: str  # what the file was recognised as, for people ('GluonCV SSD on ResNet-50')
    state_dict: dict[str, Tensor]  # target names to tensors; those of the file are not changed in place
    renamed: dict[str, str] = field(default_factory=dict)  # source to target, of everything that was taken over
    changed: dict[str, str] = field(default_factory=dict)  # target to what was done to its values (a fold, a roll)
    dropped: dict[str, str] = field(default_factory=dict)  # source to why it has no place of its own
    needed: Needed = field(default_factory=dict)  # settings that the network must have (anchors, eps, colours)
    classes: tuple[str, ...] = ()  # in the order of the outputs, where the file leaves no doubt about them
    unchecked: str = ''  # settings that matter and of which the file says nothing
    added: tuple[str, ...] = ()  # offset keys that the baseline lacked; zeros were put there for an upgraded network

    def problems(self, model: nn.Module) -> list[str]:
        """Every reason why ``model`` is not the network that this baseline was trained as."""
        return problems_of(model, self.needed)

    def summary(self) -> dict[str, Any]:
        """What was done, in plain numbers and texts, for a checkpoint's ``meta``."""
        changed, dropped = (dict(Counter(reasons.values())) for reasons in (self.changed, self.dropped))
        return {'format': self.format, 'tensors': len(self.renamed), 'changed': changed, 'dropped': dropped}

    def __str__(self) -> str:
        renamed = sum(source != target for source, target in self.renamed.items())
        lines = [
            f'{self.format}: {len(self.renamed)} tensors, {f"{renamed} renamed" if renamed else "all as they are"}'
        ]
        for title, reasons in (('changed in value', self.changed), ('dropped', self.dropped)):
            for reason in dict.fromkeys(reasons.values()):
                names = [name for name in reasons if reasons[name] == reason]
                lines.append(f'  {len(names)} {title}, {reason}: {listed(names, 3)}')
        if self.unchecked:
            lines.append(f'  not in the file, so compare yourself: {self.unchecked}')
        return '\n'.join(lines)


@dataclass(frozen=True)
class Rule:
    """What becomes of the names that ``source`` matches, a regular expression for the whole name.

    In ``target``, the network's name, ``{1}`` stands for the first group and ``{1-1}`` for the number in it less one
    (``+``, ``-``, ``/`` without a remainder, ``%``). None drops the tensor. To ``fold`` is exact: the tensor is a
    convolution's bias, ``target`` the running mean of the norm behind it, from which the bias is subtracted.
    """

    source: str
    target: str | None
    why: str = ''  # why it is dropped, or what is done to its values
    change: Callable[[Tensor], Tensor] | None = None
    fold: bool = False

    def take(self, result: Imported, name: str, tensor: Tensor, match: Match[str]) -> None:
        """Put a tensor where it belongs, or write down why it has no place.

        Raises:
            ValueError, IndexError, RuntimeError: its values are not what the rule expects.
        """
        target = self.target and re.sub(r'\{(\d)(?:([-+/%])(\d+))?\}', partial(_group, match), self.target)
        if target is None or self.fold:
            result.dropped[name] = self.why
        if target is None:
            return
        known = result.state_dict.get(target)
        if self.fold:
            # scale * (conv + bias - mean) / sigma + shift. A norm of scale and shift alone has a mean of 0.
            mean = torch.zeros_like(tensor) if known is None else known
            result.state_dict[target] = (mean.double() - tensor.double().view_as(mean)).to(mean.dtype)
            result.changed[target] = "the convolution's bias subtracted"
            return
        if known is not None:
            other = next(name for name, its in result.renamed.items() if its == target)
            raise ValueError(f'{other} is the same parameter, {target}')
        if not tensor.is_floating_point() and not target.endswith('num_batches_tracked'):
            raise ValueError('expected floats: is it a quantised network?')
        result.state_dict[target], result.renamed[name] = tensor, target
        if self.change is not None:
            result.state_dict[target], result.changed[target] = self.change(tensor), self.why


def _group(match: Match[str], wanted: Match[str]) -> str:
    value = match[int(wanted[1])]
    return str(_OPERATORS[wanted[2]](int(value), int(wanted[3]))) if wanted[2] else value


FOLD = ('subtracted from the mean of the norm behind it', None, True)  # the end of such a rule


@dataclass(frozen=True)
class KeyMap:
    """How one file is imported."""

    rules: Sequence[Rule]  # the first that matches a name counts
    needed: Needed = field(default_factory=dict)  # settings that the network must have
    classes: tuple[str, ...] = ()  # where they are known
    unchecked: str = ''  # see Imported
    complete: Callable[[Imported], None] = lambda imported: None  # adds what the file need not hold


@dataclass(frozen=True)
class Format:
    """One family of foreign checkpoints."""

    name: str  # for people
    has: Callable[[Source], bool]  # whether names are this family's
    key_map: Callable[[Source], KeyMap]  # how a file is imported, as its tensors tell
    spellings: Spellings = ()  # from the several ways to write a name to the one that all else here knows

    def spelling(self, name: str) -> str:
        """A name after the replacements of ``spellings``, one after the other."""
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name

    def recognise(self, source: Source) -> bool:
        """Whether a state dict is of this family, by its names alone, as they are or in the one spelling."""
        return self.has({**source, **{self.spelling(name): tensor for name, tensor in source.items()}})

    def convert(self, source: Source) -> Imported:
        """A state dict under the network's names.

        Raises:
            CheckpointError: names that no rule knows, two names for one tensor, or values that a rule cannot change;
                all in one message.
        """
        spelled = {name: self.spelling(name) for name in source}
        try:
            key_map = self.key_map({spelled[name]: tensor for name, tensor in source.items()})
        except (LookupError, RuntimeError) as error:
            raise CheckpointError(f'it looks like {self.name}, but for its outputs or anchors: {error}') from error
        result = Imported(self.name, {}, needed=key_map.needed, classes=key_map.classes, unchecked=key_map.unchecked)
        problems: list[str] = []
        found: dict[str, tuple[Rule, Match[str]]] = {}
        for name in source:
            for rule in key_map.rules:
                if match := re.fullmatch(rule.source, spelled[name]):
                    found[name] = rule, match
                    break
        if unknown := [name for name in source if name not in found]:
            problems.append(f'names that the importer does not know ({len(unknown)}): {listed(unknown)}')
        for name, (rule, match) in sorted(found.items(), key=lambda item: item[1][0].fold):  # means before biases
            try:
                rule.take(result, name, source[name], match)
            except (ValueError, IndexError, RuntimeError) as error:
                problems.append(f'{name} ({source[name].dtype}, {tuple(source[name].shape)}): {error}')
        if problems:
            raise CheckpointError(
                f'it looks like {self.name}, and cannot be imported as that:\n  ' + '\n  '.join(problems)
            )
        key_map.complete(result)
        return result


def names_with(*alternatives: tuple[str, ...]) -> Callable[[Source], bool]:
    """Recognises a file that has all names of one of these."""
    return lambda names: any(names.keys() >= set(needed) for needed in alternatives)


def select_rows(order: Sequence[int], width: int = 1) -> Callable[[Tensor], Tensor]:
    """Rows of an output layer by class, for a weight or a bias of (anchors * classes * width, ...), anchor-major.

    Args:
        order: the file's class indices, in the network's order; the greatest is the file's last class.
        width: rows of one class (4 for boxes of each class).
    """
    sizes = (-1, max(order, default=0) + 1, width)
    return lambda tensor: tensor.unflatten(0, sizes)[:, list(order)].flatten(0, 2)
