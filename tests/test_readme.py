"""What the README shows is what there is."""
import re

from mmengine.config import Config

from mmdeform_upgrade.hooks import upgraded_layers

from .conftest import ROOT, build, run_tool

README = (ROOT / 'README.md').read_text(encoding='utf8')


def _blocks(language):
    return re.findall(rf'```{language}\n(.*?)```', README, re.S)


def test_the_config_to_add_works(tiny_config, tiny_baseline, tmp_path):
    text, = (block for block in _blocks('python') if '_base_' in block)
    assert len(text.splitlines()) <= 12
    path = tmp_path / 'mine.py'
    text = text.replace('./ssd512_r50_voc.py', str(tiny_config)).replace('ssd512_r50_voc.pth', str(tiny_baseline))
    path.write_text(text)
    assert len(upgraded_layers(build(Config.fromfile(path)))) == 3
    log = run_tool('train.py', path, '--work-dir', tmp_path / 'w', '--cfg-options', 'train_cfg.max_epochs=1').stdout
    assert '6 offset tensors added as zeros' in log


def test_the_plain_pytorch_lines_work():
    from torch import nn
    text, = (block for block in _blocks('python') if 'upgrade_(model' in block)
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(4)))
    exec(text, {'model': model})
    assert len(upgraded_layers(model)) == 3


def test_files_and_links_exist():
    links = re.findall(r'\]\((?!http)([^)#]+)\)', README)
    for target in links + re.findall(r'(?:tools|configs)/[\w/.-]+\.(?:py|sh)', README):
        assert (ROOT / target).exists(), target


def test_flags_exist():
    helped = run_tool('upgrade.py', '--help').stdout
    for flag in set(re.findall(r'--(?:part|epoch-ratio|control|dry-run|out|targets)\b', README)):
        assert flag in helped, flag


def test_make_targets_exist():
    makefile = (ROOT / 'Makefile').read_text()
    for target in set(re.findall(r'^make (\w+)', README, re.M)):
        assert re.search(rf'^{target}:', makefile, re.M), target
