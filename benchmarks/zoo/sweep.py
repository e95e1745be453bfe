# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""All configs, or a sample of them, through worker processes into a file of JSON lines that can be added to."""

from __future__ import annotations

import fnmatch
import json
import os
import sys
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from tqdm import tqdm

from mmdeform_upgrade.config.settings import type_name
from mmdeform_upgrade.errors import DataError

from .configs import BACKBONES, NECKS, choose, component, config_key, config_names, load_config, parts_called
from .worker import Task, Worker

Record = Dict[str, Any]

_INTERVAL = 0.5 if sys.stderr.isatty() else 60  # seconds between lines of progress


def sweep(
    out: Path,
    *,
    only: str = '*',
    jobs: int = 1,
    limit: float = 900,
    sample: Optional[int] = None,
    seed: int = 0,
    redo: Sequence[str] = (),
) -> List[Record]:
    """Check the configs of the installed frameworks, except those that ``out`` already has.

    Args:
        out: JSON lines, one a config; what is there is kept, and it is in the order of the configs in the end.
        only: shell pattern of the configs' names, as in ``'mmdet/retinanet/*'``.
        jobs: processes, one thread each.
        limit: seconds a config may take.
        sample: check this many, spread over the backbone types, instead of all.
        seed: of the sample.
        redo: reasons whose configs are checked again.

    Returns:
        The records of the file.

    Raises:
        DataError: no config has such a name, or ``out`` is not a file of records.
    """
    names = fnmatch.filter(config_names(), only)
    if not names:
        raise DataError(
            f'no config of the installed frameworks is called {only!r}; names are like '
            'mmdet/retinanet/retinanet_r50_fpn_1x_coco.py'
        )
    done = {record['config']: record for record in read_records(out) if record.get('reason') not in redo}
    tasks = plan(names, sample, seed)
    left = [task for task in tasks if task[0] not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    _rewrite(out, done.values())
    with open(out, 'a', encoding='utf8') as file:
        for record in tqdm(
            run_tasks(left, jobs, limit), total=len(left), desc='configs', unit='', mininterval=_INTERVAL
        ):
            file.write(_line(record))
            file.flush()
            done[record['config']] = record
    order = {name: place for place, name in enumerate(config_names())}
    records = sorted(done.values(), key=lambda record: order.get(record['config'], len(order)))
    _rewrite(out, records)
    return records


def plan(names: Sequence[str], sample: Optional[int] = None, seed: int = 0) -> List[Task]:
    """Which configs to check in full, and which only repeat the model of one before them.

    Models whose backbone or neck is new come first, so that what is wrong shows early.
    """
    first: Dict[str, str] = {}
    seen: Set[str] = set()
    new: List[Task] = []
    repeated: List[Task] = []
    rows: List[Mapping[str, Any]] = []
    for name in tqdm(names, desc='reading configs', unit='', mininterval=_INTERVAL):
        key, backbone, parts = _model_of(name)
        (repeated if parts in seen else new).append((name, first.get(key) if key else None))
        if key and key not in first:
            first[key] = name
            seen.add(parts)
            rows.append({'config': name, 'backbone': backbone})
    if sample is None:
        return new + repeated
    return [(name, None) for name in choose([row for row in rows if row['backbone']], sample, seed)]


def run_tasks(tasks: Iterable[Task], jobs: int, limit: float) -> Iterator[Record]:
    """Records of tasks as they are done, in any order."""
    queue = iter(tasks)
    workers = [Worker(limit) for _ in range(jobs)]
    try:
        while True:
            for worker in workers:
                task = None if worker.task else next(queue, None)
                if task:
                    worker.give(task)
            busy = [worker for worker in workers if worker.task]
            if not busy:
                return
            wait([worker.connection for worker in busy], timeout=1)
            yield from (record for worker in busy if (record := worker.collect()))
    finally:
        for worker in workers:
            worker.stop()


def read_records(path: Path) -> List[Record]:
    """Records of a file of JSON lines; none where there is no file.

    Raises:
        DataError: a line is no record.
    """
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding='utf8').splitlines(), 1):
        try:
            record = json.loads(line)
            record['config']
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f'{path}, line {number}: no record of a sweep ({error}); delete the line, and its config '
                'is checked again'
            ) from error
        records.append(record)
    return records


def _model_of(name: str) -> Tuple[Optional[str], str, str]:
    """Key of the model, type of its backbone, key of its backbones and necks; nothing where there is no model."""
    try:
        cfg = load_config(name)
        if not isinstance(cfg.get('model'), Mapping):
            return None, '', ''
        parts = {part: component(cfg.model, part) for part in parts_called(cfg.model, (*BACKBONES, *NECKS))}
        backbone = next(
            (type_name(node['type']) for part, node in parts.items() if part.rpartition('.')[2] in BACKBONES), ''
        )
        return config_key(cfg, cfg.model), backbone, config_key(cfg, parts)
    except Exception:  # checking it will say why
        return None, '', ''


def _line(record: Record) -> str:
    return json.dumps(record, separators=(',', ':')) + '\n'


def _rewrite(path: Path, records: Iterable[Record]) -> None:
    partial = path.with_name(path.name + '.partial')
    partial.write_text(''.join(map(_line, records)), encoding='utf8')
    os.replace(partial, path)
