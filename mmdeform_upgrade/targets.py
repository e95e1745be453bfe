# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Which convolutions: matching only, nothing is changed here."""

from __future__ import annotations

import difflib
import re
from typing import Dict, List, Mapping, Sequence, Union

from torch import nn

from .errors import TargetError
from .layers import why_not_upgradable
from .stages import is_part, part_names

Targets = Union[str, Sequence[str], Mapping[str, int]]

_LAST = re.compile(r'last:(.*)')
_SHOWN = 24


def find_targets(model: nn.Module, targets: Targets = 'last:3', exclude: Targets = ()) -> List[str]:
    """Dotted names of the convolutions that ``targets`` selects in ``model``, in registration order.

    Args:
        model: any module; nothing in it is changed.
        targets: ``'last:N'``, the last N convolutions with a spatial kernel (larger than 1x1) that can be upgraded;
            ``'res5c'``, ``'res5b,c'``, ``'res5+res4b20-22'``, spatial convolutions of whole blocks or stages of a
            ResNet, named as in the paper (its ``res5`` is ``layer4``); ``'in:NAME'``, those in a part of the model;
            any other string, a regular expression that must match a whole dotted name; a sequence of dotted names,
            dotted suffixes (``'layer4.2.conv2'``, ``'2.conv2'``), blocks and parts; a mapping of any of these strings
            to their ``deform_groups``.
        exclude: the same except ``last:N`` and mappings, taken out before ``last:N`` counts.

    Returns:
        The names, each convolution once even if it is used in several places.

    Raises:
        TargetError: nothing matches, an entry of a sequence or ``exclude`` matches nothing, or a match cannot be
            upgraded; the message lists what could be.
    """
    check_module(model)
    check_kind(targets, 'targets')
    check_kind(exclude, 'exclude')
    modules = dict(model.named_modules())
    modules.pop('', None)
    excluded = _names(modules, exclude, 'exclude') if exclude else set()
    if isinstance(targets, Mapping):
        return list(deform_groups_of(model, targets, exclude))
    last = _LAST.fullmatch(targets) if isinstance(targets, str) else None
    if last:
        return _last(modules, last.group(1), excluded)
    chosen = _names(modules, targets, 'targets')
    convs = [name for name in modules if name in chosen - excluded and is_convolution(modules[name])]
    if not convs:
        raise TargetError(f'targets={targets!r} match no convolution{_after(excluded)}. {_candidates(modules)}')
    refused = [f'{name}: {why}' for name in convs if (why := why_not_upgradable(modules[name]))]
    if refused:
        raise TargetError(
            f'targets={targets!r} include convolutions that cannot be upgraded:\n  '
            + '\n  '.join(refused)
            + '\nTake them out with exclude, or name others. '
            + _candidates(modules)
        )
    return convs


def deform_groups_of(model: nn.Module, targets: Targets, exclude: Targets = (), default: int = 1) -> Dict[str, int]:
    """Names of :func:`find_targets` to the deform groups that a mapping gives them, or to ``default``.

    Raises:
        TargetError: as :func:`find_targets`, and where a mapping gives one convolution two numbers.
    """
    if not isinstance(targets, Mapping):
        return dict.fromkeys(find_targets(model, targets, exclude), default)
    check_module(model)
    if not targets:
        raise TargetError('targets={} match no convolution: give at least one target and its deform_groups')
    groups: Dict[str, int] = {}
    for target, count in targets.items():
        if not isinstance(count, int) or isinstance(count, bool):
            raise TargetError(f'targets: {target!r} has deform_groups {count!r}, expected a whole number')
        for name in find_targets(model, target, exclude):
            if groups.setdefault(name, count) != count:
                raise TargetError(
                    f'targets={dict(targets)!r} give {name} both {groups[name]} and {count} deform_groups'
                )
    return {name: groups[name] for name, _ in model.named_modules() if name in groups}


def check_module(model: object) -> None:
    """Refuse what is no network, such as a checkpoint or a path.

    Raises:
        TargetError: as said.
    """
    if not isinstance(model, nn.Module):
        raise TargetError(f'the model is a {type(model).__name__}, expected a torch.nn.Module: build the network first')


def check_kind(targets: object, argument: str) -> None:
    """Refuse what is neither a string, nor a sequence of strings, nor a mapping of them, before it is looked up.

    Raises:
        TargetError: as said.
    """
    if argument == 'exclude' and targets is None:
        return
    several = isinstance(targets, (list, tuple, set, frozenset, Mapping))
    if not isinstance(targets, str) and not (several and all(isinstance(t, str) and t for t in targets)):  # type: ignore
        raise TargetError(f'{argument}={targets!r} is neither a string nor a sequence of names')


def is_convolution(module: nn.Module) -> bool:
    """Whether ``module`` is some kind of 2-D convolution, upgradable or not."""
    # mmcv's deformable and other packages' convolutions are no subclasses of Conv2d.
    return isinstance(module, nn.Conv2d) or bool(re.search(r'Conv2d|Conv2D|DeformConv', type(module).__name__))


def upgradable_names(modules: Dict[str, nn.Module]) -> List[str]:
    """Names of the convolutions that ``last:N`` counts: upgradable, with a spatial kernel, no offset predictors."""
    return [
        name
        for name, module in modules.items()
        if why_not_upgradable(module) is None
        and max(module.weight.shape[2:]) > 1  # type: ignore[index,union-attr]
        and not predicts_offsets(name, modules)
    ]


def predicts_offsets(name: str, modules: Dict[str, nn.Module]) -> bool:
    """Whether a convolution is a part of another one, as the offset predictors of deformable layers are."""
    # DCN.conv_offset, SAConv2d.offset_s and offset_l; in guided anchoring, conv_offset stands beside its layer.
    owner, _, last = name.rpartition('.')
    around = modules.get(owner)
    return last == 'conv_offset' or (around is not None and is_convolution(around) and 'weight' in around._parameters)


def _last(modules: Dict[str, nn.Module], count_text: str, excluded: set) -> List[str]:
    if not (count_text.isdecimal() and int(count_text) > 0):
        raise TargetError(
            f"targets='last:{count_text}' is not understood: write last:N with a whole number N of at "
            "least 1, such as 'last:3'"
        )
    names = [name for name in upgradable_names(modules) if name not in excluded]
    if len(names) < int(count_text):
        raise TargetError(
            f"targets='last:{count_text}' asks for {count_text} convolutions, and there are "
            f'{len(names)}{_after(excluded)}. {_candidates(modules)}'
        )
    return names[-int(count_text) :]


def _names(modules: Dict[str, nn.Module], patterns: Targets, argument: str) -> set:
    if isinstance(patterns, str):
        return (_in_part if is_part(patterns) else _by_regex)(modules, patterns, argument)
    found, unknown = set(), []
    for pattern in patterns:
        if is_part(pattern):
            found.update(_in_part(modules, pattern, argument))
            continue
        if _LAST.fullmatch(pattern):
            raise TargetError(f'{argument}: {pattern!r} stands alone, as a string; it cannot be one of several')
        matches = [pattern] if pattern in modules else [n for n in modules if n.endswith('.' + pattern)]
        convs = [name for name in matches if is_convolution(modules[name])]
        if not convs:
            unknown.append(_unknown(modules, pattern, matches))
        found.update(convs)
    if unknown:
        raise TargetError(f'{argument}: ' + '; '.join(unknown) + f'. {_candidates(modules)}')
    return found


def _in_part(modules: Dict[str, nn.Module], expression: str, argument: str) -> set:
    """The spatial convolutions in the modules that an expression names, shortcuts left out; to exclude, all of them."""
    found = set()
    for part in part_names(modules, expression):
        convs = [
            name
            for name, module in modules.items()
            if name == part or name.startswith(part + '.')
            if isinstance(module, nn.Conv2d) and name.rpartition('.')[2] != 'conv_offset'
        ]
        if argument == 'targets':
            convs = [name for name in convs if max(_kernel(modules[name])) > 1 and '.downsample.' not in name]
        if not convs:
            raise TargetError(
                f'{expression}: {part} has no convolution with a kernel larger than 1x1. {_candidates(modules)}'
            )
        found.update(convs)
    return found


def _kernel(conv: nn.Module) -> Sequence[int]:
    return conv.kernel_size  # type: ignore[return-value]


def _by_regex(modules: Dict[str, nn.Module], pattern: str, argument: str) -> set:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise TargetError(f'{argument}={pattern!r} is neither last:N nor a regular expression: {error}') from error
    found = {name for name, module in modules.items() if compiled.fullmatch(name) and is_convolution(module)}
    if not found:
        meant = _meant(modules, pattern)
        raise TargetError(
            f'{argument}={pattern!r} match no convolution (a string is a regular expression for the '
            f'whole dotted name). {meant}{" " if meant else ""}{_candidates(modules)}'
        )
    return found


def _unknown(modules: Dict[str, nn.Module], pattern: str, matches: Sequence[str]) -> str:
    if matches:
        return f'{pattern!r} is a {type(modules[matches[0]]).__name__}, not a convolution'
    meant = _meant(modules, pattern)
    return f'{pattern!r} names no module' + (f' ({meant[0].lower()}{meant[1:]})' if meant else '')


def _meant(modules: Dict[str, nn.Module], pattern: str) -> str:
    inside = pattern.partition('.')[2]  # behind 'backbone.', as checkpoints and reports have it
    close = (
        [inside]
        if '.' in inside and inside in modules
        else difflib.get_close_matches(pattern, upgradable_names(modules), n=1)
    )
    return f'Did you mean {close[0]!r}?' if close else ''


def _after(excluded: set) -> str:
    return f' after {len(excluded)} excluded' if excluded else ''


def _candidates(modules: Dict[str, nn.Module]) -> str:
    names = upgradable_names(modules)
    if not names:
        return 'The model has no upgradable convolution (exactly nn.Conv2d with a kernel larger than 1x1).'
    more = f' and {len(names) - _SHOWN} more before them' if len(names) > _SHOWN else ''
    return f'Upgradable, in order: {", ".join(names[-_SHOWN:])}{more}.'
