"""Nothing is lost: kills, full disks, damaged files. The long version: tests/faults/sweep_*.py."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import find_latest_checkpoint

from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.mm.guard import find_resumable
from mmdeform_upgrade.readers import read_checkpoint

from ..faults.tiny import save_tiny_baseline
from .tiny_runs import ended, in_child, run, same, scalars_log, train_tool

LAYER = 'backbone.second'


def _killed_while_writing(cfg, checkpoint):
    """As a child: dies with half of a checkpoint written."""
    fsync = os.fsync

    def half_written(handle):
        name = os.readlink(f'/proc/self/fd/{handle}')
        if f'.{checkpoint}.' in name:
            os.truncate(name, os.path.getsize(name) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    os.fsync = half_written
    run(cfg)


@pytest.fixture
def whole_run(tiny, tmp_path):
    """The same training without a break."""
    run(tiny, work_dir=str(tmp_path / 'whole'))
    return tmp_path / 'whole'


def test_a_run_killed_while_it_writes_goes_on_to_the_same_weights(tiny, whole_run):
    """Even where only one checkpoint is kept."""
    tiny.default_hooks.checkpoint.max_keep_ckpts = 1
    work_dir = Path(tiny.work_dir)
    assert ended(in_child(lambda: _killed_while_writing(tiny, 'epoch_2.pth'))) == -signal.SIGKILL
    left = {path.name for path in work_dir.iterdir() if '.pth' in path.name}
    (half,) = (name for name in left if name.startswith('.epoch_2.pth.'))
    assert left == {half, 'epoch_1.pth', 'best_tiny_error_epoch_1.pth'}
    assert ended(train_tool(tiny, '--resume')) == 0
    assert same(work_dir / 'epoch_3.pth', whole_run / 'epoch_3.pth')
    assert not same(work_dir / 'epoch_3.pth', whole_run / 'epoch_2.pth')
    assert sorted(path.name for path in work_dir.glob('*.pth')) == sorted(
        ['epoch_3.pth', next(whole_run.glob('best_*')).name]
    ), 'older ones are gone'
    assert not (work_dir / half).exists()


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def _flip(path):
    data = bytearray(path.read_bytes())
    weight = read_checkpoint(path)['state_dict']['backbone.first.weight'].numpy().tobytes()
    data[data.index(weight) + 1] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    'damage,reason',
    [
        (_cut, 'epoch_3.pth: .*truncated'),
        (_flip, 'epoch_3.pth: .*(CRC|damaged)'),
        (lambda path: path.write_bytes(b''), 'epoch_3.pth: '),
        (lambda path: path.unlink(), 'epoch_3.pth: there is no such file'),
        (lambda path: (path.with_name('last_checkpoint').write_text(''), path.unlink()), 'has no last_checkpoint'),
    ],
    ids=['cut', 'flipped', 'empty', 'gone', 'nameless'],
)
def test_a_checkpoint_that_is_not_whole_is_passed_over_with_a_warning(whole_run, damage, reason, monkeypatch):
    said = []
    monkeypatch.setattr('mmdeform_upgrade.mm.guard.checkpoints.print_log', lambda text, **kwargs: said.append(text))
    assert find_resumable(str(whole_run)) == str(whole_run / 'epoch_3.pth') and not said
    damage(whole_run / 'epoch_3.pth')
    assert find_resumable(str(whole_run)) == str(whole_run / 'epoch_2.pth')
    (text,) = said
    assert re.search(f'resume: .*{reason}.* Resuming from the newest checkpoint that is whole: .*epoch_2.pth', text)


def test_checkpoints_in_another_folder_are_found_there(whole_run):
    elsewhere = whole_run.with_name('elsewhere') / whole_run.name
    elsewhere.mkdir(parents=True)
    for path in whole_run.glob('epoch_*.pth'):
        path.rename(elsewhere / path.name)
    (whole_run / 'last_checkpoint').write_text(str(elsewhere / 'epoch_3.pth'))
    assert find_resumable(str(whole_run)) == str(elsewhere / 'epoch_3.pth')
    _cut(elsewhere / 'epoch_3.pth')
    assert find_resumable(str(whole_run)) == str(elsewhere / 'epoch_2.pth')


def test_a_folder_that_was_moved_is_gone_on_in(whole_run):
    moved = whole_run.rename(whole_run.with_name('moved'))
    assert find_resumable(str(moved)) == str(moved / 'epoch_3.pth')


def test_without_a_whole_checkpoint_a_resume_is_refused(tiny, whole_run, capfd):
    for path in whole_run.glob('epoch_*.pth'):
        _cut(path)
    with pytest.raises(
        CheckpointError,
        match=r'resume: no checkpoint in .* is whole: .*epoch_3.pth: .*; .*epoch_1.pth:'
        r'.* To start anew from the baseline, run without --resume',
    ):
        find_resumable(str(whole_run))
    assert ended(train_tool(tiny, '--resume', str(whole_run / 'epoch_3.pth'))) == 2
    assert re.search(
        r'CheckpointError: .*epoch_3\.pth: .*truncated.*--resume continues an interrupted run',
        capfd.readouterr().err,
    )
    assert not Path(tiny.work_dir).exists()
    assert find_resumable(tiny.work_dir) is None, 'nothing was saved'


@pytest.fixture
def small_disk(tmp_path):
    path = tmp_path / 'disk'
    path.mkdir()
    mounted = (
        shutil.which('mount')
        and subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', path], capture_output=True, check=False
        ).returncode
        == 0
    )
    if not mounted:
        pytest.skip('a file system cannot be mounted here')
    yield path
    subprocess.run(['umount', '-l', path], check=True)


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tiny, whole_run, small_disk, capfd):
    tiny.default_hooks.checkpoint.max_keep_ckpts = 1
    tiny.work_dir = str(small_disk / 'work')
    fill = dict(type='FillDisk', folder=str(small_disk))
    tiny.custom_hooks.append(fill)
    assert ended(train_tool(tiny)) == 2
    assert re.search(
        r'TrainingError: .*epoch_2.pth \(\S+ MB\) could not be written: No space left on device.*make room.*--resume',
        capfd.readouterr().err,
    )
    assert find_latest_checkpoint(tiny.work_dir) == f'{tiny.work_dir}/epoch_1.pth'
    left = {path.name for path in Path(tiny.work_dir).iterdir() if '.pth' in path.name}
    assert left == {'epoch_1.pth', 'best_tiny_error_epoch_1.pth'}, 'and nothing half-written'
    (small_disk / 'filler').unlink()
    tiny.custom_hooks.remove(fill)
    assert ended(train_tool(tiny, '--resume')) == 0
    assert same(f'{tiny.work_dir}/epoch_3.pth', whole_run / 'epoch_3.pth')


@HOOKS.register_module(force=True)
class FillDisk(Hook):
    """Leaves the disk without room for a checkpoint, though not for logs, in the second epoch."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def before_train_epoch(self, runner):
        if runner.epoch == 1:
            free = shutil.disk_usage(self.folder).free
            (self.folder / 'filler').write_bytes(bytes(free - 8192))


def test_when_training_only_gets_worse_the_best_checkpoint_is_the_untouched_upgrade(tiny, tmp_path):
    baseline = save_tiny_baseline(tmp_path / 'learned.pth', steps=60)
    runner = run(tiny, load_from=str(baseline), **{'model.sign': -1.0})
    scores = [float(text) for text in re.findall(r'tiny/error: (\S+)', scalars_log(runner))]
    assert len(scores) == 4 and all(score > 2 * scores[0] for score in scores[1:]), 'it did get worse'
    (best,) = Path(tiny.work_dir).glob('best_*')
    assert best.name == 'best_tiny_error_epoch_0.pth'
    saved = read_checkpoint(best)['state_dict']
    for key, value in read_checkpoint(baseline)['state_dict'].items():
        assert torch.equal(saved.pop(key), value)
    assert sorted(saved) == [f'{LAYER}.conv_offset.bias', f'{LAYER}.conv_offset.weight']
    assert not any(value.any() for value in saved.values())
    last = read_checkpoint(f'{tiny.work_dir}/epoch_3.pth')
    assert last['message_hub']['runtime_info']['best_ckpt'] == str(best)
    assert last['meta']['deform_upgrade']['before_training']['tiny/error'] == pytest.approx(scores[0], abs=1e-4)


class _Die(Hook):
    def before_val(self, runner):
        if runner.epoch == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_validation_that_a_break_cut_off_is_made_up_for(tiny, whole_run):
    """The best checkpoint of a resumed run is that of the whole one, here of its last epoch."""
    assert (whole_run / 'best_tiny_error_epoch_3.pth').is_file()
    assert ended(in_child(lambda: run(tiny, _Die()))) == -signal.SIGKILL
    assert [path.name for path in Path(tiny.work_dir).glob('best_*')] == ['best_tiny_error_epoch_2.pth']
    runner = run(tiny, resume=True, load_from=None)
    assert 'Validating where the resumed run stood' in scalars_log(runner)
    (best,) = Path(tiny.work_dir).glob('best_*')
    assert best.name == 'best_tiny_error_epoch_3.pth'
    weights = [read_checkpoint(path)['state_dict'] for path in (best, whole_run / best.name)]
    assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())
