# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Which convolutions: one grammar, matching only. ``modules`` is always ``dict(model.named_modules())``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from .errors import TargetError, listed
from .layers import merging_method, why_not_upgradable
from .ops.geometry import is_whole

Targets = str | Sequence[str] | Mapping[str, int]

_LAST = re.compile(r'last:(.*)')
_ITEM = r'[a-z]\d*(?:-(?:[a-z]\d*|\d+))?'
_TERM = rf'res[2-5](?:{_ITEM}(?:,{_ITEM})*)?'
_PART = re.compile(rf'in:.*|{_TERM}(?:\+{_TERM})*')
_SHOWN = 24


def find_targets(model: nn.Module, targets: Targets = 'last:3', exclude: Targets = ()) -> list[str]:
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
    return list(deform_groups_of(model, targets, exclude))


def deform_groups_of(model: nn.Module, targets: Targets, exclude: Targets = (), default: int = 1) -> dict[str, int]:
    """Names of :func:`find_targets` to the deform groups that a mapping gives them, or to ``default``.

    Raises:
        TargetError: as :func:`find_targets`, and where a mapping gives one convolution two numbers.
    """
    check_module(model)
    check_kind(targets, 'targets')
    check_kind(exclude, 'exclude')
    modules = dict(model.named_modules())
    excluded = _matches(modules, exclude, 'exclude') if exclude else set()
    if not isinstance(targets, Mapping):
        return dict.fromkeys(_chosen(modules, targets, excluded), default)
    if not targets:
        raise TargetError('targets={} match no convolution: give at least one target and its deform_groups')
    groups: dict[str, int] = {}
    for target, count in targets.items():
        if not is_whole(count):
            raise TargetError(f'targets: {target!r} has deform_groups {count!r}, expected a whole number')
        for name in _chosen(modules, target, excluded):
            if groups.setdefault(name, count) != count:
                raise TargetError(f'targets give {name} both {groups[name]} and {count} deform_groups')
    return {name: groups[name] for name in modules if name in groups}


def check_module(model: object) -> None:
    """Raise TargetError for what is no network, such as a checkpoint or a path."""
    if not isinstance(model, nn.Module):
        raise TargetError(f'the model is a {type(model).__name__}, expected a torch.nn.Module: build the network first')


def check_kind(targets: object, argument: str) -> None:
    """Raise TargetError for what is neither a string, nor a sequence of strings, nor a mapping of them."""
    if isinstance(targets, str) or (argument == 'exclude' and targets is None):
        return
    several = targets if isinstance(targets, (list, tuple, set, frozenset, Mapping)) else [None]
    if not all(isinstance(target, str) and target for target in several):
        raise TargetError(f'{argument}={targets!r} is neither a string nor a sequence of names')


def is_convolution(module: nn.Module) -> bool:
    """Whether ``module`` is some kind of 2-D convolution, upgradable or not."""
    # mmcv's deformable and other packages' convolutions are no subclasses of Conv2d; blocks that are called so (ResNeSt's
    # SplitAttentionConv2d) have no weight of their own.
    named = re.search(r'Conv2d|Conv2D|DeformConv', type(module).__name__) and 'weight' in module._parameters
    return isinstance(module, nn.Conv2d) or bool(named)


def upgradable_names(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the convolutions that ``last:N`` counts: upgradable, with a spatial kernel, no offset predictors."""
    return [name for name in _spatial_names(modules) if why_not(modules, name) is None]


def _spatial_names(modules: Mapping[str, nn.Module]) -> list[str]:
    convs = [name for name, module in modules.items() if name and why_not_upgradable(module) is None]
    spatial = [name for name in convs if max(modules[name].get_parameter('weight').shape[2:]) > 1]
    return [name for name in spatial if not predicts_offsets(name, modules)]


def predicts_offsets(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a convolution is a part of another one, as the offset predictors of deformable layers are."""
    # DCN.conv_offset, SAConv2d.offset_s and offset_l; in guided anchoring, conv_offset stands beside its layer.
    owner, _, last = name.rpartition('.')
    around = modules.get(owner)
    return last == 'conv_offset' or (around is not None and is_convolution(around) and 'weight' in around._parameters)


def why_not(modules: Mapping[str, nn.Module], name: str) -> str | None:
    """Why a convolution cannot be upgraded where it is, or None if it can."""
    if predicts_offsets(name, modules):
        return 'it predicts the offsets of a deformable layer'
    around = name
    while around:
        around = around.rpartition('.')[0]
        if method := merging_method(modules.get(around)):
            return f'{method} of {around or "the network"} merges it for deployment, where its offsets would be lost'
    return why_not_upgradable(modules[name])


def _chosen(modules: Mapping[str, nn.Module], targets: str | Sequence[str], excluded: set[str]) -> list[str]:
    if isinstance(targets, str) and (last := _LAST.fullmatch(targets)):
        return _last(modules, last[1], excluded)
    chosen = _matches(modules, targets, 'targets') - excluded
    if not (convs := [name for name in modules if name in chosen]):
        raise TargetError(f'targets={targets!r} match no convolution{_after(excluded)}. {_candidates(modules)}')
    if refused := '\n  '.join(f'{name}: {why}' for name in convs if (why := why_not(modules, name))):
        raise TargetError(
            f'targets={targets!r} include convolutions that cannot be upgraded:\n  {refused}\nTake them out with '
            f'exclude, or name others. {_candidates(modules)}'
        )
    return convs


def _last(modules: Mapping[str, nn.Module], count: str, excluded: set[str]) -> list[str]:
    if not (count.isdecimal() and int(count) > 0):
        raise TargetError(f"targets='last:{count}': write last:N with a whole number N of at least 1, such as last:3")
    names = [name for name in upgradable_names(modules) if name not in excluded]
    if len(names) < int(count):
        raise TargetError(
            f"targets='last:{count}' asks for {count} convolutions, and there are {len(names)}{_after(excluded)}: "
            f'ask for fewer, or upgrade another part of the model. {_candidates(modules)}'
        )
    return names[-int(count) :]


def _matches(modules: Mapping[str, nn.Module], targets: str | Iterable[str], argument: str) -> set[str]:
    """Convolutions that a string stands for, or any of several; whether they can be upgraded is asked later."""
    if isinstance(targets, str) and not _PART.fullmatch(targets):
        return _by_regex(modules, targets, argument)
    found: set[str] = set()
    unknown = []
    for target in [targets] if isinstance(targets, str) else targets:
        if _LAST.fullmatch(target):
            raise TargetError(f'{argument}: {target!r} stands alone, as a string; it cannot be one of several')
        if _PART.fullmatch(target):
            found |= _in_part(modules, target, argument)
            continue
        names = _called(modules, target)
        found |= (convs := {name for name in names if is_convolution(modules[name])})
        if not convs and names:
            unknown.append(f'{target!r} is a {type(modules[names[0]]).__name__}, not a convolution')
        elif not convs:
            unknown.append(f'{target!r} names no module. {_meant(modules, target)}'.rstrip('. '))
    if unknown:
        problems = '; '.join(unknown)
        raise TargetError(f'{argument}: {problems}{"" if problems.endswith("?") else "."} {_candidates(modules)}')
    return found


def _by_regex(modules: Mapping[str, nn.Module], pattern: str, argument: str) -> set[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise TargetError(f'{argument}={pattern!r} is neither last:N nor a regular expression: {error}') from error
    found = {name for name, module in modules.items() if name and compiled.fullmatch(name) and is_convolution(module)}
    if not found:
        raise TargetError(
            f'{argument}={pattern!r} match no convolution (a string is a regular expression for the whole dotted '
            f'name). {_meant(modules, pattern)}{_candidates(modules)}'
        )
    return found


def _in_part(modules: Mapping[str, nn.Module], target: str, argument: str) -> set[str]:
    """The spatial convolutions in the modules that a target names, shortcuts left out; to exclude, all of them."""
    if target.startswith('in:'):
        name = target.removeprefix('in:')
        if not (parts := _called(modules, name) if name else []):
            known = [n for n in modules if n and n.count('.') < 2]
            raise TargetError(f'{target}: there is no such module; there are {listed(known, _SHOWN)}')
    else:
        parts = [block for term in target.split('+') for block in _blocks(modules, term)]
    found = set()
    for part in parts:
        convs = {
            name
            for name, module in modules.items()
            if f'{name}.'.startswith(f'{part}.') and isinstance(module, nn.Conv2d) and not name.endswith('conv_offset')
            if argument == 'exclude' or (max(module.kernel_size) > 1 and '.downsample.' not in name)
        }
        if not convs:
            raise TargetError(
                f'{target}: {part} has no convolution with a kernel larger than 1x1. {_candidates(modules)}'
            )
        found |= convs
    return found


def _called(modules: Mapping[str, nn.Module], name: str) -> list[str]:
    """The module of a dotted name, else those whose names end in it."""
    return [name] if name in modules else [known for known in modules if known.endswith(f'.{name}')]


def _blocks(modules: Mapping[str, nn.Module], term: str) -> list[str]:
    """Modules of a term such as ``res4b20-22``, named as in Caffe's ResNets, which the papers follow.

    ``res5`` is the stage that mmdet calls ``layer4``; its blocks are ``a``, ``b``, ``c`` and so on, in long stages also
    ``a``, ``b1``, ``b2`` to ``b22``.
    """
    names = f'layer{int(term[3]) - 1}', f'res{term[3]}'
    stages = {
        name: blocks
        for name, module in modules.items()
        if name.rpartition('.')[2] in names
        if (blocks := {int(n): f'{name}.{n}' for n, _ in module.named_children() if n.isdecimal()})
    }
    if not stages:
        raise TargetError(
            f'{term}: the model has no ResNet stage {names[0]} or {names[1]}; name its convolutions, or a part of it '
            'as in:NAME'
        )
    if not term[4:]:
        return list(stages)
    indices = [index for item in term[4:].split(',') for index in _indices(item, term)]
    for stage, blocks in stages.items():
        if missing := [index for index in indices if index not in blocks]:
            first, last = _label(0, len(blocks)), _label(len(blocks) - 1, len(blocks))
            raise TargetError(
                f'{term}: {stage} has {len(blocks)} blocks, {first} to {last}; there is no '
                f'{_label(missing[0], missing[0] + 1)}'
            )
    return [blocks[index] for blocks in stages.values() for index in indices]


def _indices(item: str, term: str) -> range:
    labels = [label if label[0].isalpha() else f'b{label}' for label in item.split('-')]
    if odd := [label for label in labels if label[1:] and label[0] != 'b']:
        raise TargetError(f'{term}: {odd[0]!r} is no block; blocks are a, b, c ... or, in long stages, a, b1, b2 ...')
    start, stop = (int(label[1:] or ord(label) - ord('a')) for label in (labels[0], labels[-1]))
    if stop < start:
        raise TargetError(f'{term}: the range {item} runs backwards')
    return range(start, stop + 1)


def _label(index: int, blocks: int) -> str:
    return chr(ord('a') + index) if blocks <= 6 or index == 0 else f'b{index}'


def _meant(modules: Mapping[str, nn.Module], target: str) -> str:
    inside = target.partition('.')[2]  # behind 'backbone.', as checkpoints and reports have it
    known = '.' in inside and inside in modules
    close = [inside] if known else difflib.get_close_matches(target, upgradable_names(modules), n=1)
    return f'Did you mean {close[0]!r}? ' if close else ''


def _after(excluded: set[str]) -> str:
    return f' after {len(excluded)} excluded' if excluded else ''


def _candidates(modules: Mapping[str, nn.Module]) -> str:
    names, spatial = upgradable_names(modules), _spatial_names(modules)
    more = f' and {len(names) - _SHOWN} more before them' if len(names) > _SHOWN else ''
    text = f'Upgradable, in order: {listed(names[-_SHOWN:], _SHOWN)}{more}.'
    if not names:
        text = 'The model has no upgradable convolution (exactly nn.Conv2d with a kernel larger than 1x1).'
    others = [f'{name} ({why_not(modules, name)})' for name in spatial if name not in names]
    return f'{text} {len(others)} others are not, such as {others[-1]}.' if others else text
