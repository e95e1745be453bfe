"""Files that run code when they are loaded the usual way, at every door of the package.

The whole product of files and doors is ``tests/faults/sweep_hostile_files.py``.
"""

import itertools
import stat
import zipfile

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from mmengine.runner.checkpoint import load_from_local

from mmdeform_upgrade import load_baseline
from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.release import inspect_checkpoint, publish

from .conftest import build
from .faults import payloads
from .faults.doors import Doors, call_tool, plain_config_texts, try_door

CHEAP = [
    'upgrade.py --inspect',
    'import_baseline.py',
    'publish_model.py',
    'delta.py make, baseline',
    'delta.py make, upgrade',
    'delta.py apply, baseline',
    'delta.py apply, delta',
    'load_baseline',
    'baseline://',
]
COSTLY = [
    'upgrade.py',
    'revert.py',
    'export_onnx.py',
    'show_offsets.py',
    'train.py',
    'train.py --resume',
    'train.py, FlexibleRunner',
    'train.py, no hook',
    'train.py --resume, no hook',
    'train.py, init_cfg',
    'test.py',
    'test.py, no hook',
    "the user's own runner",
    'init_detector',
]


@pytest.fixture(scope='module')
def doors(tiny_config, tmp_path_factory):
    payloads.register_extension()
    with plain_config_texts():
        doors = Doors(tiny_config, tmp_path_factory.mktemp('doors'))
        assert set(doors.cheap()) == set(CHEAP) and set(doors.costly()) == set(COSTLY)
        yield doors


@pytest.mark.parametrize('container', payloads.CONTAINERS)
def test_every_program_runs_the_usual_way_and_not_here(doors, container, tmp_path):
    marker = tmp_path / 'marker'
    for name in payloads.NAMES:
        path = payloads.write(tmp_path, container, name, marker)
        payloads.detonate(path)
        assert marker.exists(), f'{name} is not live'
        marker.unlink()
        if payloads.is_inert(path):
            assert load_baseline(path)['a.weight'].tolist() == [1, 1, 1]
        else:
            with pytest.raises(CheckpointError, match=r'not loaded>|no readable checkpoint|only tensors'):
                load_baseline(path)
        assert not marker.exists(), name


@pytest.mark.parametrize('door', CHEAP)
def test_no_door_lets_any_program_in(doors, door, tmp_path):
    for name, container in zip(payloads.NAMES, itertools.cycle(payloads.CONTAINERS), strict=False):
        path = payloads.write(tmp_path, container, name, tmp_path / 'marker')
        try_door(doors.cheap()[door], path, tmp_path / 'marker', payloads.is_inert(path))


@pytest.mark.parametrize('door', COSTLY)
def test_no_door_behind_a_network_lets_a_program_in(doors, door, tmp_path):
    path = payloads.write(tmp_path, 'torch zip', 'global', tmp_path / 'marker')
    try_door(doors.costly()[door], path, tmp_path / 'marker', payloads.is_inert(path))


@pytest.fixture
def mmengines_own_reader(monkeypatch):
    """As in a process that has neither run a tool nor built the hook."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())
    CheckpointLoader.register_scheme('', load_from_local, force=True)


def test_a_run_with_the_hook_reads_plain_paths_safely_from_its_start_on(mmengines_own_reader, tmp_path):
    """MMEngine's own reader runs what a file holds."""
    path = payloads.write(tmp_path, 'torch zip', 'global', tmp_path / 'marker')
    CheckpointLoader.load_checkpoint(str(path))
    assert (tmp_path / 'marker').exists()
    (tmp_path / 'marker').unlink()
    HOOKS.build(dict(type='DeformUpgradeHook'))
    checkpoint = CheckpointLoader.load_checkpoint(str(path))
    assert checkpoint['meta'] == {} and not (tmp_path / 'marker').exists(), 'what nobody knows is taken out'


@pytest.fixture
def with_texts(doors, tmp_path):
    """A checkpoint that fits the upgraded network, whose config texts create the marker when they are run."""
    cfg = Config.fromfile(doors.upgraded)
    text = f'open({str(tmp_path / "marker")!r}, "w").close()\n'
    meta = dict(epoch=8, iter=32, cfg=text, config=text, deform_upgrade={})
    path = tmp_path / 'texts.pth'
    torch.save(
        {
            'meta': meta,
            'state_dict': build(cfg).state_dict(),
            'message_hub': {'log_scalars': {}, 'runtime_info': {'cfg': text}, 'resumed_keys': {}},
            'optimizer': {'state': {}, 'param_groups': []},
            'param_schedulers': [],
        },
        path,
    )
    return cfg, path


@pytest.mark.parametrize('scheme', ['', 'baseline://'])
def test_a_resume_runs_no_config_text_of_its_checkpoint(with_texts, mmengines_own_reader, tmp_path, scheme):
    cfg, path = with_texts
    cfg.update(
        work_dir=str(tmp_path / 'work'),
        resume=True,
        load_from=f'{scheme}{path}',
        param_scheduler=None,
        experiment_name=f'texts{scheme[:-3]}',
        log_level='ERROR',
    )
    if scheme:
        cfg.custom_hooks = None
    cfg.default_hooks.checkpoint.save_best = None
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
    runner = Runner.from_cfg(cfg)
    runner.resume_optimizer = False
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.call_hook('before_run')
    runner.resume(runner._load_from, resume_optimizer=False, resume_param_scheduler=False)
    assert runner.epoch == 8 and not (tmp_path / 'marker').exists()
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    runner.resume(str(path), resume_optimizer=False, resume_param_scheduler=False)
    assert (tmp_path / 'marker').exists(), 'the file is live'


def test_publishing_and_inspecting_run_no_config_text(with_texts, tmp_path):
    _, path = with_texts
    lines = publish(str(path), str(tmp_path / 'zoo'))
    assert lines[-1] == 'no stock config: the config in a checkpoint is a program, which is not run; give --config'
    inspect_checkpoint(str(path)), inspect_checkpoint(lines[1])
    status, _ = call_tool('model_converters/publish_model.py', lines[0], tmp_path / 'again')
    assert status == 0 and not (tmp_path / 'marker').exists()
    assert 'open(' in torch.load(lines[0], weights_only=True)['meta']['cfg'], 'it is kept as text'


def _archive(path, name, mode=0o600, data=b'x'):
    torch.save({'state_dict': {'a': torch.ones(1)}}, path)
    with zipfile.ZipFile(path, 'a') as archive:
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        archive.writestr(member, data)
    return path


@pytest.mark.parametrize('name', ['../outside', '/etc/outside', 'archive/../../outside', '..\\outside', 'C:\\outside'])
def test_an_archive_that_leads_outside_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="its member '.*outside' lies outside of the archive"):
        load_baseline(_archive(tmp_path / 'a.pth', name))
    with zipfile.ZipFile(tmp_path / 'b.npz', 'w') as archive:
        archive.writestr(f'{name}.npy', b'x')
    with pytest.raises(CheckpointError, match='lies outside of the archive'):
        load_baseline(tmp_path / 'b.npz')


def test_an_archive_with_a_link_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="its member 'archive/data/0' is a symbolic link"):
        load_baseline(_archive(tmp_path / 'a.pth', 'archive/data/0', stat.S_IFLNK | 0o777, b'/etc/passwd'))
    assert load_checkpoint(torch.nn.Module(), f'baseline://{_archive(tmp_path / "b.pth", "b/more")}')


def test_names_in_a_file_do_not_steer_the_terminal(tmp_path):
    torch.save({'state_dict': {'a\x1b[2Jb': 1}}, tmp_path / 'a.pth')
    status, message = call_tool('upgrade.py', '--inspect', tmp_path / 'a.pth')
    assert status == 2 and r'a\x1b[2Jb' in message and '\x1b' not in message
