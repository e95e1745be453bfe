"""The sweep over many configs: its plan, its sample, its processes and its files."""

import json
import time
from collections import Counter

import pytest

from benchmarks.zoo import configs, reasons
from benchmarks.zoo.check import check_duplicate
from benchmarks.zoo.summary import passed
from benchmarks.zoo.sweep import plan, read_records, run_tasks, sweep
from benchmarks.zoo.worker import Worker
from mmdeform_upgrade.errors import DataError
from tests.conftest import run_tool

from .conftest import backbone


def test_the_same_model_is_checked_once_but_every_config_is_upgraded(zoo):
    first, other = zoo(backbone=backbone()), zoo(backbone=backbone('frozen'))
    again = zoo(text=f'model = {dict(backbone=backbone(), type="ZooWhole")}\ntrain_cfg = dict(max_epochs=8)\n')
    schedule = zoo(text=f'model = {dict(backbone=backbone(), type="ZooWhole")}\ntrain_cfg = dict(max_epochs="8")\n')
    assert plan([first, other, again]) == [(first, None), (other, None), (again, first)]
    record = check_duplicate(again, first)
    assert (record['reason'], record['detail']) == (reasons.DUPLICATE, first)
    assert check_duplicate(schedule, first)['reason'] == reasons.OURS, 'a config that cannot be made is no duplicate'


def test_a_sample_is_seeded_and_takes_the_cheap_ones_of_every_type():
    rows = [dict(config=f'{kind}{i}', backbone=kind, seconds=i) for kind in 'abc' for i in range(10)]
    chosen = configs.choose(rows, 6, seed=1)
    assert chosen == configs.choose(rows, 6, seed=1) != configs.choose(rows, 6, seed=2)
    assert Counter(name[0] for name in chosen) == dict(a=2, b=2, c=2) and all(int(name[1]) < 5 for name in chosen)
    assert sorted(configs.choose(rows, 99, seed=1)) == sorted(row['config'] for row in rows)


def test_a_process_that_dies_or_hangs_costs_one_config():
    worker = Worker(limit=300)
    worker.give(('mmdet/x.py', None))
    worker._process.kill()
    record = _wait_for(worker)
    assert record['reason'] == reasons.OURS and record['detail'] == 'its process ended with status -9'
    worker.limit = 0.01
    worker.give(('mmdet/y.py', None))
    record = _wait_for(worker)
    assert (record['config'], record['reason']) == ('mmdet/y.py', reasons.TOO_LONG) and worker._process is None


def _wait_for(worker):
    while not (record := worker.collect()):
        time.sleep(0.01)
    return record


def test_the_tool_goes_on_where_it_stopped_and_keeps_the_order(tmp_path):
    out, table = tmp_path / 'zoo.jsonl', tmp_path / 'zoo.md'
    marked = dict(config='mmseg/_base_/datasets/hrf.py', reason=reasons.STOCK, detail='left alone', seconds=0)
    out.write_text(json.dumps(marked) + '\n')
    run_tool('benchmarks/zoo/zoo_sweep.py', '--only', 'mmseg/_base_/*/[ceh][hr]*.py', '--out', out, '--summary', table)
    chase, kept, erfnet = read_records(out)
    assert (chase['config'], chase['reason']) == ('mmseg/_base_/datasets/chase_db1.py', reasons.NO_MODEL)
    assert kept == marked
    assert passed(erfnet) and erfnet['backbone'] == 'ERFNet'
    assert '2 distinct models: **1 upgraded' in table.read_text()


def test_files_that_are_no_records_and_unknown_names_are_refused(tmp_path):
    path = tmp_path / 'zoo.jsonl'
    path.write_text('{"config":"a"}\n{"name":1}\n')
    with pytest.raises(DataError, match='zoo.jsonl, line 2: no record of a sweep'):
        read_records(path)
    with pytest.raises(DataError, match="no config of the installed frameworks is called 'mmdet/none'"):
        sweep(path, only='mmdet/none')
    assert list(run_tasks([], 1, 1)) == []
