"""`make demo`, made small."""

import json
import re

import cv2
import pytest

from benchmarks.demo.tasks import TASKS
from benchmarks.page import Page
from tests.conftest import run_tool


@pytest.fixture(scope='module', params=sorted(TASKS))
def demo(request, tmp_path_factory):
    out = tmp_path_factory.mktemp('demo') / 'out'
    sizes = ('--train', 8, '--val', 2, '--test', 4, '--steps', 4, '--batches', 12)
    return out, run_tool('benchmarks/demo/run.py', '--task', request.param, '--out', out, *sizes, timeout=550).stdout


def test_every_network_is_scored_and_nothing_is_lost(demo):
    out, text = demo
    rows = re.findall(r'\| (\S[^|]*?) +\| (\d) +\| (\d+\.\d\d) +\|', text)
    assert [row[:2] for row in rows] == [
        ('baseline, its own camera', '0'),
        ('baseline, the new camera', '0'),
        ('upgrade, before its first step', '0'),
        ('control: trained on, no upgrade', '4'),
        ('adapter: offsets alone trained', '4'),
        ('adapter taken off again', '0'),
        ('upgrade, everything trained', '4'),
    ]
    scores = json.loads((out / 'demo.json').read_text())
    assert scores['nothing_lost'] and scores['data'] == 'generated'
    assert rows[1][2] == rows[2][2] == rows[5][2], 'the untouched upgrade and the adapter taken off are the baseline'
    assert scores['adapter']['on'] == scores['scores']['offsets'], 'the adapter is the whole of what was trained'
    assert scores['adapter']['bytes'] < 200_000
    assert 'Nothing is lost' in text and re.search(r'The upgrade (gains|loses) \d+\.\d\d points', text)


def test_all_arms_start_where_the_baseline_is(demo):
    curves = json.loads((demo[0] / 'demo.json').read_text())['curves']
    assert curves['upgraded'][0] == curves['offsets'][0] and curves['upgraded'][0][0] == 0
    assert [steps for steps, _ in curves['control']] == [1, 2, 3, 4]


def test_the_signal_is_measured_for_both_cameras_beside_each_other(demo):
    out, text = demo
    signal = json.loads((out / 'demo.json').read_text())['signal']
    assert {layer['batches'] for camera in ('home', 'camera') for layer in signal[camera]['layers']} == {12}
    medians = [signal[camera]['extents'][1] for camera in ('home', 'camera')]
    assert medians[0] < medians[1], 'the same scenes, through another camera'
    rows = re.findall(r'\| (\S+) +\| ([\d.-]+) +\| [\d.-]+ +\| \w+ +\| ([\d.-]+) +\|', text)
    found = [[layer['layer'] for layer in signal['home']['layers']]]
    found += [[f'{layer["snr"]:.1f}' for layer in signal[camera]['layers']] for camera in ('home', 'camera')]
    assert [list(column) for column in zip(*rows, strict=True)] == found and len(rows) == 9
    assert re.search(r"\d of 9 layers have a signal on the new camera's pictures, \d of 9 on those", text)


def test_the_page_needs_nothing_else(demo):
    out = demo[0]
    page = (out / 'index.html').read_text()
    task = TASKS[json.loads((out / 'demo.json').read_text())['task']]
    assert not re.search(r'(?:src|href)="(?!data:)', page) and 'url(' not in page and '<script' not in page
    for words in (
        'prefers-color-scheme: dark',
        task.command,
        f'validation {task.score}',
        'upgrade, everything trained',
        'ZeroOffsetDCN',
    ):
        assert words in page
    assert len((out / 'index.html').read_bytes()) < 5e6
    for name in ('curves.png', 'pictures.png', 'offsets.png'):
        picture = cv2.imread(str(out / name))
        assert picture is not None and picture.std() > 10, f'{name} is not blank'


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    again = run_tool('benchmarks/demo/run.py', '--out', tmp_path, check=False)
    assert again.returncode == 2 and 'is not empty' in again.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_a_page_shows_text_as_it_is_and_bands_of_curves(tmp_path):
    page = Page('a < b')
    page.table([('name', 'score'), ('<b>', '1.5'), ('x', '')], strong=[1])
    page.chart({'arm': [(1, 2.0, 1.0, 3.0), (10, 3.0, 2.5, 3.5)], 'level': [(1, 2.5)]}, 'steps', 'score', log=True)
    page.write(tmp_path / 'index.html')
    text = (tmp_path / 'index.html').read_text()
    assert '&lt;b&gt;' in text and '<b>' not in text and 'a &lt; b' in text
    assert text.count('<polygon') == 1 and text.count('<polyline') == 1 and 'stroke-dasharray' in text
    assert '<td class=number>1.5</td>' in text
