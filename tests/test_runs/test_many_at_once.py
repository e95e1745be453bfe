"""Two runs in one folder, a process of several that dies, and an upgrade of a network in use."""

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.mm.guard import hold

from ..faults.tiny import save_tiny_baseline, tiny_config
from .tiny_runs import ended, in_child, run, train_tool


@pytest.fixture
def tiny(tmp_path):
    baseline = save_tiny_baseline(tmp_path / 'baseline.pth')
    return tiny_config(tmp_path / 'work', baseline, **{'train_cfg.max_epochs': 2})


@pytest.fixture
def other_run(tiny):
    """A process that has the work directory and a data worker, until it is killed."""

    def stay():
        os.makedirs(tiny.work_dir)
        held = hold(tiny.work_dir)
        if os.fork() == 0:
            (Path(tiny.work_dir) / 'worker').write_text(str(os.getpid()))
        time.sleep(60)
        held.close()

    process, worker = in_child(stay), Path(tiny.work_dir) / 'worker'
    while not (worker.is_file() and worker.read_text()):
        time.sleep(0.01)
    yield process
    for number in (int(worker.read_text()), process):
        os.kill(number, signal.SIGKILL)
    ended(process)


def test_a_second_run_in_a_work_directory_is_refused_until_the_first_is_dead(tiny, other_run, capfd):
    message = rf'work_dir=\S+ is in use by process {other_run} on {socket.gethostname()}, since 2.*--work-dir'
    assert ended(train_tool(tiny)) == 2
    assert re.search(f'ConfigError: {message}', capfd.readouterr().err)
    assert not list(Path(tiny.work_dir).glob('*.pth'))
    with pytest.raises(ConfigError, match=message):
        run(tiny)  # another script than the package's own
    os.kill(other_run, signal.SIGKILL)
    os.waitid(os.P_PID, other_run, os.WEXITED | os.WNOWAIT)
    run(tiny)  # although its data worker is still there
    assert (Path(tiny.work_dir) / 'epoch_2.pth').is_file()
    assert ended(in_child(lambda: os._exit(3 if _refused(tiny.work_dir) else 4))) == 4, 'it was given back'


def test_a_run_that_goes_on_may_be_looked_at(tiny, other_run):
    """tools/test.py writes its logs to the same folder."""
    DefaultScope._instance_dict.clear()
    tiny.merge_from_dict({'default_hooks.checkpoint.save_best': None, 'experiment_name': 'looked_at'})
    assert 'tiny/error' in Runner.from_cfg(tiny).val()


def test_a_folder_is_held_until_it_is_given_back(tmp_path):
    held = hold(str(tmp_path))
    assert ended(in_child(lambda: os._exit(3 if _refused(tmp_path) else 4))) == 3, 'a child has not got it'
    held.close()
    assert ended(in_child(lambda: os._exit(3 if _refused(tmp_path) else 4))) == 4


def _refused(path):
    try:
        return not hold(str(path))
    except ConfigError:
        return True


class _Die(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and runner.iter == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def _rank(cfg, rank, port):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)
    )
    run(cfg, _Die())


def test_a_dead_process_ends_the_others_with_an_error(tiny, capfd):
    tiny.update(
        launcher='pytorch',
        env_cfg=dict(dist_cfg=dict(backend='gloo', timeout=20)),
        model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None),
    )
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    processes = [in_child(lambda rank=rank: _rank(tiny, rank, port)) for rank in (0, 1)]
    assert [ended(process) for process in processes] == [1, -signal.SIGKILL]
    assert time.monotonic() - start < 20
    assert re.search('RuntimeError.*(closed by peer|reset by peer|Timed out)', capfd.readouterr().err)


def test_a_refused_work_directory_is_told_by_every_process(tiny, other_run, capfd):
    tiny.update(
        launcher='pytorch',
        env_cfg=dict(dist_cfg=dict(backend='gloo', timeout=20)),
        model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None),
    )
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    processes = [in_child(lambda rank=rank: _rank(tiny, rank, port)) for rank in (0, 1)]
    assert [ended(process) for process in processes] == [1, 1]
    assert capfd.readouterr().err.count(f'is in use by process {other_run}') == 2
