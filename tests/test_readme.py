"""What the README shows is what there is."""

import re

import torch
from mmengine.config import Config
from torch import nn

from mmdeform_upgrade.layers import upgraded_layers

from .conftest import ROOT, build, run_tool

README = (ROOT / 'README.md').read_text(encoding='utf8')


def _blocks(language):
    return re.findall(rf'```{language}\n(.*?)```', README, re.S)


def test_the_config_to_add_works(tiny_config, tiny_baseline, tmp_path):
    (text,) = (block for block in _blocks('python') if '_base_' in block)
    path = tmp_path / 'mine.py'
    text = text.replace('./ssd512_r50_voc.py', str(tiny_config)).replace('ssd512_r50_voc.pth', str(tiny_baseline))
    path.write_text(text)
    assert len(upgraded_layers(build(Config.fromfile(path)))) == 3
    log = run_tool('train.py', path, '--work-dir', tmp_path / 'w', '--cfg-options', 'train_cfg.max_epochs=1').stdout
    assert '6 offset tensors added as zeros' in log


def test_the_plain_pytorch_lines_work(tmp_path, monkeypatch):
    (text,) = (block for block in _blocks('python') if 'upgrade_(model' in block)
    trained, model = (nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(4))) for _ in range(2))
    torch.save(trained.state_dict(), tmp_path / 'baseline.pth')
    monkeypatch.chdir(tmp_path)
    found = {'model': model, 'torch': torch}
    exec(text, found)
    assert len(upgraded_layers(model)) == 3
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(model(images), trained(images))
    known = {id(p) for group in found['optimizer'].param_groups for p in group['params']}
    assert all(id(p) in known for layer in upgraded_layers(model).values() for p in layer.conv_offset.parameters())
