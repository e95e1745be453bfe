# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Key maps as data: a list of rules from a file's names to the network's, and the one function that applies it."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from re import Match

import torch
from torch import Tensor

from ..errors import CheckpointError, listed
from .base import Check, Imported

_OPERATORS = {'+': operator.add, '-': operator.sub, '/': operator.floordiv, '%': operator.mod}


@dataclass(frozen=True)
class Rule:
    """What becomes of the names that ``source`` matches.

    Attributes:
        source: a regular expression for the whole name.
        target: the network's name. ``{1}`` stands for the first group, ``{1-1}`` for the number in it less one
            (``+``, ``-``, ``/`` without a remainder, ``%``). Or a function of the match; None drops the tensor.
        why: why it is dropped, or what is done to its values.
        change: what is done to its values; may raise CheckpointError if it cannot be done.
        fold: the tensor is a convolution's bias, and ``target`` the running mean of the norm behind it: the bias is
            subtracted there, which is exact.
    """

    source: str
    target: str | Callable[[Match[str]], str] | None
    why: str = ''
    change: Callable[[Tensor], Tensor] | None = None
    fold: bool = False

    def name(self, match: Match[str]) -> str | None:
        """The network's name for a match of ``source``."""
        if not isinstance(self.target, str):
            return self.target and self.target(match)

        def group(found: Match[str]) -> str:
            value = match[int(found[1])]
            return str(_OPERATORS[found[2]](int(value), int(found[3]))) if found[2] else value

        return re.sub(r'\{(\d)(?:([-+/%])(\d+))?\}', group, self.target)


def apply_rules(
    format_name: str,
    rules: Sequence[Rule],
    source: Mapping[str, Tensor],
    *,
    spelling: Callable[[str], str] = str,
    expected: Iterable[str] = (),
    checks: Sequence[Check] = (),
    classes: tuple[str, ...] = (),
) -> Imported:
    """A state dict under the network's names.

    Args:
        format_name: for messages and the record.
        rules: the first that matches a name counts.
        source: names to tensors of a file.
        spelling: turns the several ways in which a library may write a name into the one that the rules know.
        expected: names of the network without which the file is not whole.
        checks, classes: for the result.

    Raises:
        CheckpointError: names that no rule knows, names that are missing, two names for one tensor, or values that a
            rule cannot change; all in one message.
    """
    result = Imported(format_name, {}, {}, {}, {}, tuple(checks), classes)
    unknown: list[str] = []
    problems: list[str] = []
    folds: dict[str, str] = {}
    for name, tensor in source.items():
        rule, target = _matching(rules, spelling(name))
        if rule is None:
            unknown.append(name)
        elif target is None:
            result.dropped[name] = rule.why
        elif rule.fold:
            folds[name], result.dropped[name] = target, rule.why
        else:
            problems += _take(result, name, tensor, target, rule)
    missing = [name for name in expected if name not in result.state_dict]
    problems += _named('names that the importer does not know', unknown) + _named('missing', missing)
    for name, target in folds.items():
        problems += _fold(result, name, source[name], target)
    if problems:
        raise CheckpointError(
            f'it looks like {format_name}, and cannot be imported as that:\n  ' + '\n  '.join(problems)
        )
    return result


def _matching(rules: Sequence[Rule], name: str) -> tuple[Rule | None, str | None]:
    for rule in rules:
        if match := re.fullmatch(rule.source, name):
            return rule, rule.name(match)
    return None, None


def _take(result: Imported, name: str, tensor: Tensor, target: str, rule: Rule) -> list[str]:
    if target in result.state_dict:
        other = next(known for known, its in result.renamed.items() if its == target)
        return [f'{other} and {name} are the same parameter, {target}']
    if not tensor.is_floating_point() and not target.endswith('num_batches_tracked'):
        return [f'{name} is {tensor.dtype}, expected floats: is it a quantised network?']
    result.state_dict[target], result.renamed[name] = tensor, target
    if rule.change is not None:
        try:
            result.state_dict[target] = rule.change(tensor)
        except (CheckpointError, RuntimeError) as error:
            return [f'{name} of shape {tuple(tensor.shape)}: {error}']
        if result.state_dict[target] is not tensor:
            result.changed[target] = rule.why
    return []


def _fold(result: Imported, name: str, bias: Tensor, target: str) -> list[str]:
    # scale * (conv + bias - mean) / sigma + shift. A norm of scale and shift alone has a mean of 0.
    mean = result.state_dict.get(target, torch.zeros_like(bias))
    if target in result.changed:
        return [f'{name} and another name are the same bias']
    if bias.shape != mean.shape:
        return [f'{name} has the shape {tuple(bias.shape)}, {target} {tuple(mean.shape)}']
    result.state_dict[target] = (mean.double() - bias.double()).to(mean.dtype)
    result.changed[target] = "the convolution's bias subtracted"
    return []


def _named(title: str, names: Sequence[str]) -> list[str]:
    return [f'{title} ({len(names)}): {listed(names)}'] if names else []


def select_rows(order: Sequence[int], groups: int = 1, width: int = 1) -> Callable[[Tensor], Tensor]:
    """Rows of an output layer by class, for a weight or a bias of (groups * classes * width, ...), group-major.

    Args:
        order: the file's class indices, in the network's order; the greatest is the file's last class.
        groups: anchors of a cell.
        width: rows of one class (4 for boxes of each class).
    """
    classes = max(order, default=0) + 1

    def change(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != groups * classes * width:
            raise CheckpointError(f'expected {groups * classes * width} rows: {groups} * {classes} * {width}')
        blocks = tensor.reshape(groups, -1, width, *tensor.shape[1:])
        return blocks[:, list(order)].reshape(-1, *tensor.shape[1:])

    return change
