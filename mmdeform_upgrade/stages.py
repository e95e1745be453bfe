# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Names that a person types for parts of a network: ``res5c``, the papers' name of a block, and ``in:NAME``."""

from __future__ import annotations

import re
from typing import Dict, List, Mapping

from torch import nn

from .errors import TargetError

_IN = 'in:'
_ITEM = r'[a-z]\d*(?:-(?:[a-z]\d*|\d+))?'
_TERM = rf'res[2-5](?:{_ITEM}(?:,{_ITEM})*)?'
_EXPRESSION = re.compile(rf'{_TERM}(?:\+{_TERM})*')


def is_part(expression: str) -> bool:
    """Whether a target is ``in:NAME``, or blocks of a ResNet as in ``res5c`` or ``res5+res4b20-22``."""
    return expression.startswith(_IN) or _EXPRESSION.fullmatch(expression) is not None


def part_names(modules: Mapping[str, nn.Module], expression: str) -> List[str]:
    """Dotted names of the modules that an expression stands for (:func:`is_part`).

    Blocks are named as in Caffe's ResNets, which the papers follow: ``res5`` is the stage that mmdet calls ``layer4``;
    its blocks are ``a``, ``b``, ``c`` and so on, in long stages also ``a``, ``b1``, ``b2`` to ``b22``.

    Raises:
        TargetError: there is no such module, stage or block; the message says what there is.
    """
    if expression.startswith(_IN):
        return _named(modules, expression[len(_IN) :])
    return [block for term in expression.split('+') for block in _term(modules, term)]


def _named(modules: Mapping[str, nn.Module], name: str) -> List[str]:
    found = [name] if name in modules else [n for n in modules if name and n.endswith('.' + name)]
    if not found:
        parts = [n for n in modules if n.count('.') < 2]
        raise TargetError(
            f'{_IN}{name}: there is no such module; there are {", ".join(parts[:24])}'
            + (' ...' if len(parts) > 24 else '')
        )
    return found


def _term(modules: Mapping[str, nn.Module], term: str) -> List[str]:
    names = f'layer{int(term[3]) - 1}', f'res{term[3]}'
    stages = [name for name in modules if name.rpartition('.')[2] in names and _blocks(modules, name)]
    if not stages:
        raise TargetError(
            f'{term}: the model has no ResNet stage {names[0]} or {names[1]}; name its convolutions, or '
            f'a part of it as {_IN}NAME'
        )
    if not term[4:]:
        return stages
    return [block for stage in stages for block in _chosen(_blocks(modules, stage), term, stage)]


def _blocks(modules: Mapping[str, nn.Module], stage: str) -> Dict[int, str]:
    return {int(name): f'{stage}.{name}' for name, _ in modules[stage].named_children() if name.isdecimal()}


def _chosen(blocks: Mapping[int, str], term: str, stage: str) -> List[str]:
    indices = [index for item in term[4:].split(',') for index in _indices(item, term)]
    missing = [index for index in indices if index not in blocks]
    if missing:
        raise TargetError(
            f'{term}: {stage} has {len(blocks)} blocks, {_label(0, len(blocks))} to '
            f'{_label(len(blocks) - 1, len(blocks))}; there is no {_label(missing[0], missing[0] + 1)}'
        )
    return [blocks[index] for index in indices]


def _indices(item: str, term: str) -> List[int]:
    first, _, last = item.partition('-')
    start, stop = _index(first, term), _index(last or first, term)
    if stop < start:
        raise TargetError(f'{term}: the range {item} runs backwards')
    return list(range(start, stop + 1))


def _index(label: str, term: str) -> int:
    letter, digits = (label[0], label[1:]) if label[0].isalpha() else ('b', label)
    if digits and letter != 'b':
        raise TargetError(f'{term}: {label!r} is no block; blocks are a, b, c ... or, in long stages, a, b1, b2 ...')
    return int(digits) if digits else ord(letter) - ord('a')


def _label(index: int, blocks: int) -> str:
    return chr(ord('a') + index) if blocks <= 6 or index == 0 else f'b{index}'
