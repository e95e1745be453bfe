"""Where a baseline comes from and what it may hold: folders, addresses, deformable layers of its own."""

import functools
import http.server
import re
import subprocess
import sys
import threading

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmdeform_upgrade.errors import CheckpointError, ConfigError
from mmdeform_upgrade.mm.loading import local_path
from mmdeform_upgrade.mm.preflight import plan_upgrade
from mmdeform_upgrade.readers import read_checkpoint

from ..faults.doors import call_tool
from ..faults.tiny import TinyBackbone, save_tiny_baseline, tiny_config
from .conftest import _number


def _runner(cfg):
    DefaultScope._instance_dict.clear()
    cfg.experiment_name = f'baseline{next(_number)}'
    return Runner.from_cfg(cfg)


@pytest.mark.parametrize('name', ['epoch_9.pth', 'best_tiny_error_epoch_3.pth', 'saved-7.tar'])
def test_the_folder_of_the_baseline_is_no_work_directory(tmp_path, name):
    baseline = save_tiny_baseline(tmp_path / name)
    before = baseline.read_bytes()
    cfg = tiny_config(tmp_path, baseline, **{'train_cfg.max_epochs': 1})
    if name == 'saved-7.tar':
        cfg.default_hooks.checkpoint.filename_tmpl = 'saved-{}.tar'
    with pytest.raises(ConfigError, match=rf'load_from={baseline} lies in {tmp_path}, .* give another work_dir'):
        _runner(cfg).train()
    assert {path.name for path in tmp_path.iterdir() if path.suffix in ('.pth', '.tar')} == {name}
    assert baseline.read_bytes() == before
    cfg.work_dir = str(tmp_path / 'own')
    _runner(cfg).train()


def test_a_baseline_under_another_name_may_lie_in_the_work_directory(tmp_path):
    cfg = tiny_config(tmp_path, save_tiny_baseline(tmp_path / 'baseline.pth'), **{'train_cfg.max_epochs': 1})
    _runner(cfg).train()
    assert (tmp_path / 'epoch_1.pth').is_file()


class Modulated(nn.Conv2d):
    """As mmcv's DCNv2 has it: offsets and modulation by one convolution, which is no identity when it is zero."""

    def __init__(self):
        super().__init__(3, 4, 3, padding=1)
        self.conv_offset = nn.Conv2d(3, 27, 3, padding=1)

    def forward(self, x):
        return super().forward(x) * self.conv_offset(x)[:, -1:].sigmoid()


@MODELS.register_module(force=True)
class TinyModulated(TinyBackbone):
    def __init__(self):
        super().__init__()
        self.first = Modulated()


@pytest.fixture
def modulated(tmp_path):
    """The upgrade of a network that has another library's deformable layer beside."""
    cfg = tiny_config(tmp_path / 'work', tmp_path / 'baseline.pth', **{'train_cfg.max_epochs': 1})
    cfg.model.backbone.base_type = 'TinyModulated'
    return cfg


def test_deformable_layers_that_the_baseline_trained_stay_as_they_are(modulated, tmp_path):
    network = MODELS.build(dict(type='TinyModel', backbone=dict(type='TinyModulated')))
    torch.save({'state_dict': network.state_dict()}, tmp_path / 'baseline.pth')
    modulated.optim_wrapper.optimizer.lr = 1e-12
    _runner(modulated).train()
    saved = read_checkpoint(tmp_path / 'work' / 'epoch_1.pth')
    trained = network.backbone.first.conv_offset.weight
    assert trained.any() and torch.allclose(saved['state_dict']['backbone.first.conv_offset.weight'], trained)
    assert list(saved['meta']['deform_upgrade']['layers']) == ['backbone.second']


def test_layers_upgraded_before_keep_their_offsets_beside_new_ones(tmp_path):
    first = dict(type='DeformUpgrade', base_type='TinyBackbone', targets='first')
    network = MODELS.build(dict(type='TinyModel', backbone=first))
    nn.init.normal_(network.backbone.first.conv_offset.bias)
    torch.save({'state_dict': network.state_dict()}, tmp_path / 'baseline.pth')
    cfg = tiny_config(tmp_path / 'work', tmp_path / 'baseline.pth', **{'model.backbone.targets': 'last:2'})
    runner = _runner(cfg)
    for step in (
        lambda: runner.call_hook('before_run'),
        runner.load_or_resume,
        lambda: runner.call_hook('before_train'),
    ):
        step()
    offsets = {name: layer.conv_offset.bias for name, layer in runner.model.backbone.named_children()}
    assert torch.equal(offsets['first'], network.backbone.first.conv_offset.bias) and not offsets['second'].any()


def test_a_new_deformable_layer_of_another_kind_is_refused(modulated, tmp_path):
    """Filled with zeros, its modulation would be a half."""
    save_tiny_baseline(tmp_path / 'baseline.pth')
    with pytest.raises(CheckpointError, match=r'lacks offsets.*backbone\.first\b(?s:.*)compute something else'):
        _runner(modulated).train()
    assert not list((tmp_path / 'work').glob('*.pth'))


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Address of a server of two different files of one name, and what it was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if not self.path.startswith(('/half/', '/page/', '/cut/')):
                return super().do_GET()
            self.send_response(200)
            if not self.path.startswith('/half/'):
                self.end_headers()
                return self.wfile.write(
                    b'PK\x03\x04...' if 'cut' in self.path else b'<!doctype html><title>Log in</title>'
                )
            self.send_header('Content-Length', '1000')
            self.end_headers()
            self.wfile.write(b'x' * 500)

        def log_message(self, text, *values):
            asked.append(self.path)

    for name, steps in (('one', 1), ('two', 2)):
        (tmp_path / 'served' / name).mkdir(parents=True)
        save_tiny_baseline(tmp_path / 'served' / name / 'epoch_1.pth', steps=steps)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    handler = functools.partial(Handler, directory=str(tmp_path / 'served'))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}', asked
        server.shutdown()


def test_addresses_with_one_file_name_are_different_files_each_downloaded_once(served, tmp_path):
    address, asked = served
    for _ in range(2):
        for name in ('one', 'two'):
            found = read_checkpoint(local_path(f'{address}/{name}/epoch_1.pth'))['state_dict']
            given = read_checkpoint(tmp_path / 'served' / name / 'epoch_1.pth')['state_dict']
            assert all(torch.equal(found[key], given[key]) for key in given)
    assert asked == ['/one/epoch_1.pth', '/two/epoch_1.pth']


def test_plan_training_and_inspection_take_an_address(served, tmp_path, capsys):
    address = f'{served[0]}/one/epoch_1.pth'
    cfg = tiny_config(tmp_path / 'work', address, **{'train_cfg.max_epochs': 1})
    _, plan = plan_upgrade(tiny_config(tmp_path / 'work'), cfg, address)
    assert '4 tensors fit, 2 offset tensors start at zero' in plan
    _runner(cfg).train()
    assert read_checkpoint(tmp_path / 'work' / 'epoch_1.pth')['meta']['deform_upgrade']['baseline'] == 'epoch_1.pth'
    assert call_tool('upgrade.py', '--inspect', address) == (0, '')


@pytest.mark.parametrize(
    'name,problem',
    [
        ('half/epoch_1.pth', 'could not be downloaded .the connection ended early'),
        ('cut/epoch_1.pth', 'could not be downloaded .File is not a zip file'),
        ('page/epoch_1.pth', 'could not be downloaded .it looks like a web page'),
        ('a b/epoch_1.pth', 'could not be downloaded .URL can.t contain control'),
        ('', 'names no file'),
    ],
)
def test_an_address_that_gives_no_whole_file_leaves_nothing_behind(served, tmp_path, name, problem):
    with pytest.raises(CheckpointError, match=problem):
        local_path(f'{served[0]}/{name}')
    assert not [path for path in (tmp_path / 'torch').rglob('*') if path.is_file()]


def test_an_address_with_nothing_behind_it_is_an_error_of_one_message(served, tmp_path):
    status, message = call_tool('upgrade.py', '--inspect', f'{served[0]}/none.pth')
    assert status == 2 and 'Traceback' not in message
    assert re.match(f'CheckpointError: {served[0]}/none.pth .*HTTP Error 404.*open it in a browser, or give', message)
    assert not list((tmp_path / 'torch').rglob('none*'))


def test_a_console_without_the_letters_of_a_name_gets_them_escaped():
    code = (
        'from mmdeform_upgrade.mm import command_line\n'
        'command_line.run(lambda _: print("written: M\\u00fcller.py"))\n'
        'print("done")'
    )
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, env={'PYTHONIOENCODING': 'ascii'}
    )
    assert result.stdout.splitlines() == [r'written: M\xfcller.py', 'done']
