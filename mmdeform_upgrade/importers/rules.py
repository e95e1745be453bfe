# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Key maps as data: rules from a file's names to the network's, the one conversion that applies them, and its result."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from re import Match
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, listed

Source = Mapping[str, Tensor]
_OPERATORS = {'+': operator.add, '-': operator.sub, '/': operator.floordiv, '%': operator.mod}


# Looks at the network that an import is meant for, and returns what does not fit, a line each.
Check = Callable[[nn.Module], list[str]]


@dataclass(frozen=True)
class Imported:
    """A baseline under mmdet's or mmseg's names, and what was done to get there."""

    format: str  # what the file was recognised as, for people ('GluonCV SSD on ResNet-50')
    state_dict: dict[str, Tensor]  # target names to tensors; those of the file are not changed in place
    renamed: dict[str, str] = field(default_factory=dict)  # source to target, of everything that was taken over
    changed: dict[str, str] = field(default_factory=dict)  # target to what was done to its values (a fold, a roll)
    dropped: dict[str, str] = field(default_factory=dict)  # source to why it has no place of its own
    checks: tuple[Check, ...] = ()  # what only the network can tell (anchors, eps, number of classes)
    classes: tuple[str, ...] = ()  # in the order of the outputs, where the file leaves no doubt about them
    added: tuple[str, ...] = ()  # offset keys that the baseline lacked; zeros were put there for an upgraded network

    def problems(self, model: nn.Module) -> list[str]:
        """Every reason why ``model`` is not the network that this baseline was trained as."""
        return [problem for check in self.checks for problem in check(model)]

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

    def name(self, match: Match[str]) -> str | None:
        """The network's name for a match of ``source``."""

        def group(found: Match[str]) -> str:
            value = match[int(found[1])]
            return str(_OPERATORS[found[2]](int(value), int(found[3]))) if found[2] else value

        return self.target and re.sub(r'\{(\d)(?:([-+/%])(\d+))?\}', group, self.target)


FOLD = ('subtracted from the mean of the norm behind it', None, True)  # the end of such a rule


@dataclass(frozen=True)
class KeyMap:
    """How one file is imported."""

    rules: Sequence[Rule]  # the first that matches a name counts
    checks: Sequence[Check] = ()  # settings that the network must have
    classes: tuple[str, ...] = ()  # where they are known
    complete: Callable[[Imported], None] = lambda imported: None  # adds what the file need not hold


@dataclass(frozen=True)
class Format:
    """One family of foreign checkpoints."""

    name: str  # for people
    recognise: Callable[[Source], bool]  # whether names and shapes are this family's; looks at nothing else
    key_map: Callable[[Source], KeyMap]  # how a file is imported, as its tensors tell; names are in the one spelling
    spelling: Callable[[str], str] = str  # from the several ways to write a name to the one that the rules know

    def convert(self, source: Source) -> Imported:
        """A state dict under the network's names.

        Raises:
            CheckpointError: names that no rule knows, two names for one tensor, or values that a rule cannot change;
                all in one message.
        """
        try:
            key_map = self.key_map({self.spelling(name): tensor for name, tensor in source.items()})
        except (LookupError, RuntimeError) as error:
            raise CheckpointError(f'it looks like {self.name}, but for its outputs or anchors: {error}') from error
        result = Imported(self.name, {}, checks=tuple(key_map.checks), classes=key_map.classes)
        if problems := self._take(result, key_map.rules, source):
            raise CheckpointError(
                f'it looks like {self.name}, and cannot be imported as that:\n  ' + '\n  '.join(problems)
            )
        key_map.complete(result)
        return result

    def _take(self, result: Imported, rules: Sequence[Rule], source: Source) -> list[str]:
        unknown: list[str] = []
        problems: list[str] = []
        folds: dict[str, str] = {}
        for name, tensor in source.items():
            spelled = self.spelling(name)
            found = next(((rule, match) for rule in rules if (match := re.fullmatch(rule.source, spelled))), None)
            if found is None:
                unknown.append(name)
                continue
            rule, match = found
            target = rule.name(match)
            if target is None:
                result.dropped[name] = rule.why
            elif rule.fold:
                folds[name], result.dropped[name] = target, rule.why
            else:
                problems += _rename(result, name, tensor, target, rule)
        if unknown:
            problems.insert(0, f'names that the importer does not know ({len(unknown)}): {listed(unknown)}')
        for name, target in folds.items():
            problems += _fold(result, name, source[name], target)
        return problems


def names_with(*alternatives: tuple[str, ...]) -> Callable[[Source], bool]:
    """Recognises a file that has all names of one of these."""
    return lambda names: any(names.keys() >= set(needed) for needed in alternatives)


def respelled(table: Sequence[tuple[str, str | Callable[[Match[str]], str]]], name: str) -> str:
    """A name after the replacements of a table of regular expressions, one after the other."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def select_rows(order: Sequence[int], width: int = 1) -> Callable[[Tensor], Tensor]:
    """Rows of an output layer by class, for a weight or a bias of (anchors * classes * width, ...), anchor-major.

    Args:
        order: the file's class indices, in the network's order; the greatest is the file's last class.
        width: rows of one class (4 for boxes of each class).
    """
    sizes = (-1, max(order, default=0) + 1, width)
    return lambda tensor: tensor.unflatten(0, sizes)[:, list(order)].flatten(0, 2)


def _rename(result: Imported, name: str, tensor: Tensor, target: str, rule: Rule) -> list[str]:
    if target in result.state_dict:
        other = next(known for known, its in result.renamed.items() if its == target)
        return [f'{other} and {name} are the same parameter, {target}']
    if not tensor.is_floating_point() and not target.endswith('num_batches_tracked'):
        return [f'{name} is {tensor.dtype}, expected floats: is it a quantised network?']
    result.state_dict[target], result.renamed[name] = tensor, target
    if rule.change is not None:
        try:
            result.state_dict[target] = rule.change(tensor)
        except (IndexError, RuntimeError) as error:
            return [f'{name} of shape {tuple(tensor.shape)}: {error}']
        result.changed[target] = rule.why
    return []


def _fold(result: Imported, name: str, bias: Tensor, target: str) -> list[str]:
    # scale * (conv + bias - mean) / sigma + shift. A norm of scale and shift alone has a mean of 0.
    mean = result.state_dict.get(target, torch.zeros_like(bias))
    if bias.shape != mean.shape:
        return [f'{name} has the shape {tuple(bias.shape)}, {target} {tuple(mean.shape)}']
    result.state_dict[target] = (mean.double() - bias.double()).to(mean.dtype)
    result.changed[target] = "the convolution's bias subtracted"
    return []
