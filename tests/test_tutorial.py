"""docs/tutorial.py is a real run, made small."""

import re

import cv2
import pytest
import torch

from benchmarks.tool_runs import read_curve

from .conftest import ROOT

TEXT = (ROOT / 'docs' / 'tutorial.py').read_text(encoding='utf8')


@pytest.mark.filterwarnings('ignore')
def test_the_tutorial_runs_from_baseline_to_release_and_back(tmp_path, monkeypatch, capsys):
    # Configs are written without yapf's layout, which takes most of a short run's time.
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **kwargs: (text, True))
    monkeypatch.chdir(ROOT)
    out = tmp_path / 'out'
    text = TEXT
    for pattern, new in (
        (r'^OUT = .*$', f'OUT = Path({str(out)!r})'),
        (r'^PICTURES, EPOCHS, BATCH = .*$', 'PICTURES, EPOCHS, BATCH = 16, 2, 8'),
        ('interval=10', 'interval=1'),
    ):
        text, count = re.subn(pattern, new, text, flags=re.M)
        assert count == 1, pattern
    found = {'__name__': '__main__'}
    for cell in re.split(r'^# %%.*$', text, flags=re.M):  # cell by cell, as a reader would
        exec(compile(cell, 'docs/tutorial.py', 'exec'), found)
    text = capsys.readouterr().out
    assert 'a baseline, nothing in it is upgraded' in text
    assert '\ncheckpoint: 148 tensors fit, 16 offset tensors start at zero\nschedule before: ' in text
    assert 'offset tensors are new; all 3 maps of the backbone are equal' in text
    ((_, score),) = read_curve(out / 'baseline', 'pascal_voc/mAP')
    assert found['provenance']['before_training']['pascal_voc/mAP'] == score
    logged = next((out / 'upgraded').glob('*/vis_data/scalars.json')).read_text()
    assert 'offsets/backbone.layer4.1.conv2/mean' in logged
    assert cv2.imread(str(out / 'offsets.png')).std() > 10
    assert torch.load(found['release'], weights_only=True)['meta']['deform_upgrade']['layers']
    plain, upgraded, left = found['counts']
    assert plain <= left < upgraded and found['gone'], 'after two steps no offset is a quarter of a pixel long'
