"""Nothing is lost: kills, full disks, damaged files, broken numbers. The long version: tests/faults/sweep_*.py."""

import importlib.util
import math
import os
import re
import shutil
import signal
import subprocess
import traceback
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.runner import Runner, find_latest_checkpoint

from mmdeform_upgrade.errors import CheckpointError, TrainingError
from mmdeform_upgrade.mm.guard import find_resumable
from mmdeform_upgrade.readers import read_checkpoint

from ..conftest import ROOT
from ..faults.tiny import TinyBackbone, save_tiny_baseline, tiny_config
from .conftest import _number

LAYER = 'backbone.second'


@HOOKS.register_module(force=True)
class SetWeights(Hook):
    """Sets one parameter after a step."""

    priority = 'HIGHEST'

    def __init__(self, name, value, epoch=2):
        self.name, self.value, self.epoch = name, value, epoch

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.epoch == self.epoch:
            runner.model.get_parameter(self.name).data.fill_(self.value)


@pytest.fixture(scope='module')
def baseline(tmp_path_factory):
    return save_tiny_baseline(tmp_path_factory.mktemp('tiny') / 'baseline.pth')


@pytest.fixture
def tiny(baseline, tmp_path):
    """The upgrade's config: three epochs, all checkpoints kept."""
    return tiny_config(
        tmp_path / 'work', baseline, **{'train_cfg.max_epochs': 3, 'default_hooks.checkpoint.max_keep_ckpts': -1}
    )


def run(cfg, *hooks, **changes):
    """Train in this process."""
    DefaultScope._instance_dict.clear()
    cfg = cfg.copy()
    cfg.merge_from_dict(changes)
    cfg.custom_hooks = [*hooks, *cfg.custom_hooks]
    cfg.experiment_name = f'tiny{next(_number)}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def in_child(function):
    """Run it in a fork; returns the process's id."""
    process = os.fork()
    if process == 0:
        try:
            function()
            os._exit(0)
        except SystemExit as error:
            os._exit(int(error.code))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return process


def ended(process):
    """How it ended: the exit status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def train_tool(cfg, *args):
    """tools/train.py in a fork."""
    path = f'{cfg.work_dir}.py'
    cfg.dump(path)
    spec = importlib.util.spec_from_file_location('train_tool', ROOT / 'tools' / 'train.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return in_child(lambda: tool.command_line.run(tool.main, [path, '--work-dir', cfg.work_dir, *args]))


def same(one, other):
    """Whether two checkpoints go on in the same way, to the bit."""
    parts = [
        {key: checkpoint[key] for key in ('state_dict', 'optimizer', 'param_schedulers')}
        for checkpoint in map(read_checkpoint, (one, other))
    ]
    tensors = [[value for _, value in sorted(_flat(part))] for part in parts]
    return len(tensors[0]) == len(tensors[1]) and all(map(torch.equal, *tensors))


def _flat(value, name=''):
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(inner, f'{name}.{key}')
    elif isinstance(value, (torch.Tensor, int, float)) and not isinstance(value, bool):
        yield name, torch.as_tensor(value)


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
    scores = [float(text) for text in re.findall(r'tiny/error: (\S+)', _scalars_log(runner))]
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


def _scalars_log(runner):
    return next(Path(runner.log_dir).glob('*.log')).read_text()


@pytest.mark.parametrize('interval', [1, 50], ids=['looked at', 'found when saved'])
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_weights_that_are_no_numbers_stop_the_run_and_are_never_saved(tiny, value, interval):
    tiny.default_hooks.checkpoint.max_keep_ckpts = 1
    tiny.custom_hooks[1].finite_interval = interval
    message = (
        rf'iteration {9 if interval == 1 else 12}: weights are not finite: of the upgraded layers {LAYER}.*'
        r'conv_offset=dict\(lr_mult=0.1\).*The last checkpoint is .*epoch_2.pth'
    )
    with pytest.raises(TrainingError, match=message):
        run(tiny, dict(type='SetWeights', name=f'{LAYER}.conv_offset.bias', value=value))
    assert find_resumable(tiny.work_dir) == f'{tiny.work_dir}/epoch_2.pth'
    state = read_checkpoint(f'{tiny.work_dir}/epoch_2.pth')['state_dict']
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_a_loss_that_is_not_finite_is_a_warning_while_the_weights_are(tiny):
    """As where the loss scale of mixed precision is too large, and the step is left out."""
    tiny.custom_hooks[1].finite_interval = 6
    runner = run(tiny, _BadLoss(times=1))
    assert re.search('WARNING - RunGuardHook: the loss of iteration 6 is not finite', _scalars_log(runner))
    assert runner.epoch == 3


class _BadLoss(Hook):
    priority = 'HIGHEST'

    def __init__(self, times):
        self.times = times

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if 5 <= runner.iter < 5 + self.times:
            outputs['loss'] = torch.tensor(math.nan)


@MODELS.register_module(force=True)
class TinyMasked(TinyBackbone):
    """Holds an infinity from the start, as the mask of an attention."""

    def __init__(self):
        super().__init__()
        self.register_buffer('mask', torch.tensor([0.0, -math.inf]))

    def forward(self, x):
        return super().forward(x) + self.mask.exp()[1]


def test_what_a_network_itself_holds_that_is_not_finite_may_stay_so(tiny, baseline, tmp_path):
    tiny.model.backbone.base_type = 'TinyMasked'
    checkpoint = read_checkpoint(baseline)
    checkpoint['state_dict']['backbone.mask'] = torch.tensor([0.0, -math.inf])
    torch.save(checkpoint, tmp_path / 'masked.pth')
    assert run(tiny, load_from=str(tmp_path / 'masked.pth')).epoch == 3


@pytest.mark.parametrize('hook', ['RunGuardHook', 'DeformUpgradeHook'])
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_a_baseline_that_diverged_is_named_before_anything_is_trained(tiny, baseline, tmp_path, hook, value, capfd):
    checkpoint = read_checkpoint(baseline)
    checkpoint['state_dict']['backbone.first.bias'][0] = value
    torch.save(checkpoint, tmp_path / 'diverged.pth')
    tiny.load_from, tiny.custom_hooks = str(tmp_path / 'diverged.pth'), [dict(type=hook)]
    assert ended(train_tool(tiny)) == 2
    message = r'1 of its tensors are not finite \(backbone.first.bias\): the training that saved it diverged'
    assert re.search(f'CheckpointError: .*diverged.pth: {message}', capfd.readouterr().err)
    assert Path(tiny.work_dir).exists() == (hook == 'RunGuardHook')  # whose runs build no second network


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
    assert 'Validating where the resumed run stood' in _scalars_log(runner)
    (best,) = Path(tiny.work_dir).glob('best_*')
    assert best.name == 'best_tiny_error_epoch_3.pth'
    weights = [read_checkpoint(path)['state_dict'] for path in (best, whole_run / best.name)]
    assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())
