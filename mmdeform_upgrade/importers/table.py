# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Key maps as data: a list of rules from a file's names to the network's, and the one function that applies it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, Match, Optional, Sequence, Tuple, Union

from torch import Tensor

from ..errors import CheckpointError
from .base import Check, Imported

_SHOWN = 20


@dataclass(frozen=True)
class Rule:
    """What becomes of the names that ``source`` matches.

    Attributes:
        source: a regular expression for the whole name.
        target: the network's name, with groups as in ``re.sub`` or made from the match; None drops the tensor.
        why: why it is dropped, or what is done to its values.
        change: what is done to its values.
    """

    source: str
    target: Union[str, Callable[[Match[str]], str], None]
    why: str = ''
    change: Optional[Callable[[Tensor], Tensor]] = None


def apply_rules(
    format_name: str,
    rules: Sequence[Rule],
    source: Mapping[str, Tensor],
    *,
    checks: Tuple[Check, ...] = (),
    classes: Tuple[str, ...] = (),
) -> Imported:
    """A state dict under the network's names.

    Raises:
        CheckpointError: names that no rule knows, two names for one tensor, or values of a shape that the rule cannot
            change; all in one message.
    """
    state_dict: Dict[str, Tensor] = {}
    renamed: Dict[str, str] = {}
    changed: Dict[str, str] = {}
    dropped: Dict[str, str] = {}
    unknown: List[str] = []
    problems: List[str] = []
    for name, tensor in source.items():
        rule, match = _matching(rules, name)
        if rule is None or match is None:
            unknown.append(name)
        elif rule.target is None:
            dropped[name] = rule.why
        else:
            target = rule.target(match) if callable(rule.target) else match.expand(rule.target)
            if target in state_dict:
                problems.append(f'{name} and another name both stand for {target}')
            try:
                state_dict[target] = tensor if rule.change is None else rule.change(tensor)
            except (CheckpointError, RuntimeError, IndexError) as error:
                problems.append(f'{name} of shape {tuple(tensor.shape)}: {error}')
            renamed[name] = target
            if rule.change is not None:
                changed[target] = rule.why
    if unknown:
        problems.append(
            f'names that the importer does not know ({len(unknown)}): {", ".join(unknown[:_SHOWN])}'
            + (f' and {len(unknown) - _SHOWN} more' if len(unknown) > _SHOWN else '')
        )
    if problems:
        raise CheckpointError(
            f'it looks like {format_name}, and cannot be imported as that:\n  ' + '\n  '.join(problems)
        )
    return Imported(format_name, state_dict, renamed, changed, dropped, checks, classes)


def _matching(rules: Sequence[Rule], name: str) -> Tuple[Optional[Rule], Optional[Match[str]]]:
    for rule in rules:
        if match := re.fullmatch(rule.source, name):
            return rule, match
    return None, None


def select_rows(tensor: Tensor, order: Sequence[int], groups: int, width: int = 1) -> Tensor:
    """Rows of an output layer by class.

    Args:
        tensor: weight or bias, (groups * classes * width, ...), group-major.
        order: the file's class indices, in the network's order.
        groups: anchors of a cell.
        width: rows of one class (4 for boxes of each class).
    """
    if tensor.shape[0] % (groups * width):
        raise CheckpointError(f'{tensor.shape[0]} rows are no whole number of classes for {groups} anchors')
    blocks = tensor.reshape(groups, -1, width, *tensor.shape[1:])
    return blocks[:, list(order)].reshape(-1, *tensor.shape[1:])
