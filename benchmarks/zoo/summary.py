# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A sweep's records counted, as Markdown."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from importlib import import_module
from typing import Any, Dict, List, Mapping, Sequence

import torch

from . import reasons

Record = Mapping[str, Any]

_UNCOUNTED = (reasons.NO_MODEL, reasons.DUPLICATE)
_NECK_TRIED = (reasons.NO_CONVS, reasons.SUBCLASSES, reasons.DEFORMABLE, reasons.FROZEN)


def passed(record: Record) -> bool:
    """Whether the config's backbone was upgraded and every comparison was as promised."""
    return 'reason' not in record


def _neck_instead(record: Record) -> bool:
    return record.get('reason') in _NECK_TRIED and bool(record.get('parts'))


def summary(records: Sequence[Record]) -> str:
    """Markdown: totals, a table by backbone type, and every config that was not upgraded with its reason."""
    return (
        '\n'.join([*_totals(records), *_backbones(records), *_magnified(records), *_partly(records), *_others(records)])
        + '\n'
    )


def versions() -> str:
    """What the sweep ran with."""
    found = []
    for name in ('mmdet', 'mmseg', 'mmcv', 'mmengine'):
        found.append(f'{name} {import_module(name).__version__}')
    return ', '.join([*found, f'torch {torch.__version__}, Python {platform.python_version()}'])


def _totals(records: Sequence[Record]) -> List[str]:
    counts = Counter(record.get('reason') for record in records)
    distinct = [record for record in records if record.get('reason') not in _UNCOUNTED]
    alone = sum(passed(record) and 'alone' in record for record in distinct)
    good = sum(map(passed, distinct)) - alone
    necks = sum(map(_neck_instead, distinct))
    seconds = sum(record.get('seconds', 0) for record in records)
    return [
        '# Every config of mmdet and mmseg, upgraded',
        '',
        'Written by `benchmarks/zoo/zoo_sweep.py`; [targets.md](../../docs/targets.md) says which models can be upgraded.',
        '',
        versions() + '.',
        '',
        f'- {len(records)} config files, of which {counts[reasons.NO_MODEL]} hold no model and '
        f'{counts[reasons.DUPLICATE]} repeat the model of another file',
        f'- {len(distinct)} distinct models: **{good} upgraded, with exactly the original outputs**; {alone} upgraded '
        'likewise but without the rest of the model, which cannot be built here; '
        f'{len(distinct) - good - alone} not (in {necks} of these the neck was upgraded instead)',
        f'- {counts[reasons.OURS]} failures of this package',
        f'- {seconds / 3600:.1f} hours of one process',
        '',
    ]


def _backbones(records: Sequence[Record]) -> List[str]:
    by_name = {record['config']: record for record in records}
    files: Counter = Counter()
    groups: Dict[str, List[Record]] = defaultdict(list)
    for record in records:
        if record.get('reason') == reasons.DUPLICATE:
            record = by_name.get(record['detail'], {})
        elif 'backbone' in record:
            groups[record['backbone']].append(record)
        if 'backbone' in record:
            files[record['backbone']] += 1
    lines = [
        '## By backbone',
        '',
        "Largest difference of any output, relative to the output's largest value. *auto* is what runs on a CPU: "
        'while all offsets are zero, the plain convolution. *deformable* forces the sampling of the deformable '
        'path, in float32.',
        '',
        '| backbone | configs | distinct models | upgraded | of these alone | neck instead | difference, auto '
        '| deformable |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for name in sorted(groups, key=lambda name: (-len(groups[name]), name)):
        group = groups[name]
        parts = [part for record in group for part in record.get('parts', ()) if 'moved' in part]
        necks = sum(map(_neck_instead, group))
        lines.append(
            f'| {name} | {files[name]} | {len(group)} | {sum(map(passed, group))} '
            f'| {sum(passed(record) and "alone" in record for record in group) or ""} | {necks or ""} '
            f'| {_largest(parts, "same")} | {_largest(parts, "sampled")} |'
        )
    return [*lines, '']


def _magnified(records: Sequence[Record]) -> List[str]:
    found = [
        (part['sampled'], part['sampled64'], record['config'])
        for record in records
        if passed(record)
        for part in record['parts']
        if 'sampled64' in part
    ]
    if not found:
        return []
    return [
        f'In {len(found)} models float32 rounding is magnified beyond 1e-5 on the way to the outputs, so the '
        'deformable path was compared in float64:',
        '',
        '| config | float32 | float64 |',
        '|---|---|---|',
        *(f'| {config} | {single:.1e} | {double:.1e} |' for single, double, config in sorted(found, reverse=True)),
        '',
    ]


def _partly(records: Sequence[Record]) -> List[str]:
    lines: List[str] = []
    for key, title in (
        ('alone', 'Backbone and neck upgraded without the rest of the model'),
        ('neck', 'Backbone upgraded and compared without the neck'),
    ):
        group = [record for record in records if key in record]
        if group:
            lines += [f'## {title}: {len(group)}', '', *_by_detail(group, key), '']
    return lines


def _others(records: Sequence[Record]) -> List[str]:
    lines = ['## Not upgraded', '']
    for reason, meaning in reasons.MEANING.items():
        group = [record for record in records if record.get('reason') == reason]
        if not group or reason in _UNCOUNTED:
            continue
        lines += [
            f'### {reason[0].upper()}{reason[1:]}: {len(group)}',
            '',
            f'{meaning[0].upper()}{meaning[1:]}.',
            '',
            *_by_detail(group, 'detail'),
            '',
        ]
    return lines


def _by_detail(group: Sequence[Record], key: str) -> List[str]:
    details: Dict[str, List[Record]] = defaultdict(list)
    for record in group:
        details[record.get(key, '')].append(record)
    return [
        f'- {_code(detail)} ({len(members)}): {_names(members)}'
        for detail, members in sorted(details.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def _names(records: Sequence[Record]) -> str:
    return ', '.join(
        record['config'].removesuffix('.py') + (' (its neck was upgraded)' if _neck_instead(record) else '')
        for record in records
    )


def _code(text: str) -> str:
    return '`' + text.replace('`', "'") + '`' if text else '(no more is known)'


def _largest(parts: Sequence[Record], key: str) -> str:
    return f'{max(part[key] for part in parts):.1e}'.replace('0.0e+00', '0') if parts else ''
