"""`make demo`, made small."""

import re

import cv2

from tests.conftest import run_tool


def test_demo_measures_draws_and_says_what_it_found(tmp_path):
    out = tmp_path / 'demo'
    sizes = ('--train', 16, '--val', 8, '--test', 8, '--epochs', 4, '--batch', 4)
    text = run_tool('benchmarks/demo/run.py', '--out', out, *sizes, timeout=550).stdout
    rows = re.findall(r'\| (\S[^|]*?) +\| (\S[^|]*?) +\| (\d+\.\d\d) +\|', text)
    assert [row[:2] for row in rows] == [
        ('baseline', '4'),
        ('upgraded, before its first step', '4'),
        ('upgraded, fine-tuned', '4 + 1'),
        ('control: trained on, not upgraded', '4 + 1'),
    ]
    assert rows[0][2] == rows[1][2]
    assert 'scores exactly what the baseline scores' in text
    assert re.search(r'The upgrade (gains|loses) \d+\.\d\d points against training on without it', text)
    assert '3 convolutions to ZeroOffsetDCN' in text
    for name in ('curves.png', 'detections.png'):
        picture = cv2.imread(str(out / name))
        assert picture is not None and picture.std() > 10, f'{name} is not blank'
    assert (out / 'table.md').read_text().startswith('| network')
    again = run_tool('benchmarks/demo/run.py', '--out', out, check=False)
    assert again.returncode == 2 and 'is not empty' in again.stderr
