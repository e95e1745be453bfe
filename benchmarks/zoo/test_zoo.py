"""The zoo: a sample of the frameworks' configs, checked anew, and the results and their table."""

from collections import Counter

import pytest

from benchmarks.zoo import configs, reasons
from benchmarks.zoo.check import check_config
from benchmarks.zoo.summary import passed, summary
from benchmarks.zoo.sweep import read_records
from tests.conftest import ROOT

RESULTS = ROOT / 'benchmarks/zoo/zoo.jsonl'
RECORDS = read_records(RESULTS)
SEED = 7
CHEAP = [record for record in RECORDS if passed(record) and record['seconds'] < 6]  # the others are the sweep's
SAMPLE = configs.choose(CHEAP, 40, SEED)


@pytest.mark.parametrize('name', SAMPLE)
def test_configs_of_the_frameworks_keep_all_outputs_when_upgraded(name):
    if not configs.config_path(name).is_file():
        pytest.skip('these versions of the frameworks have no such config')
    record = check_config(name)
    assert passed(record), record
    assert all((part['same'] == 0 and part['sampled'] < 1e-5) or part['sampled64'] < 1e-10 for part in record['parts'])


def test_the_sample_is_spread_over_the_backbone_types():
    types = {record['config']: record['backbone'] for record in CHEAP}
    counts = Counter(types[name] for name in SAMPLE)
    assert len(SAMPLE) == 40 and len(counts) == min(40, len(set(types.values()))), counts
    assert {'ResNet', 'ResNetV1c', 'HRNet', 'RegNet', 'MobileNetV2', 'CSPDarknet', 'SwinTransformer'} <= set(counts)


def test_the_results_cover_every_config_once_and_have_no_failure_of_ours():
    names = [record['config'] for record in RECORDS]
    assert len(set(names)) == len(names)
    assert not [record for record in RECORDS if record.get('reason') in (reasons.OURS, reasons.TOO_LONG)]
    for record in RECORDS:
        assert record.get('reason') in (None, *reasons.MEANING) and (record.get('parts') or not passed(record))
    if 'mmdet 3.5.1, mmseg 1.4.2' in _table():  # the versions that they were made with
        from mmdet import __version__ as det
        from mmseg import __version__ as seg

        if (det, seg) == ('3.5.1', '1.4.2'):
            assert sorted(names) == sorted(configs.config_names())


def _table():
    return (ROOT / 'benchmarks/zoo/zoo.md').read_text(encoding='utf8')


def test_the_table_is_that_of_the_results():
    def without_versions(text):
        return [line for line in text.splitlines() if not line.startswith('mmdet ')]

    assert without_versions(summary(RECORDS)) == without_versions(_table())
    assert RESULTS.stat().st_size < 400 * 1024
