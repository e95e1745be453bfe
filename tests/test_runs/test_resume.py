"""A run that was cut and resumed is, bit for bit, the run that was not."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import DATA_SAMPLERS, OPTIMIZERS
from mmengine.runner import Runner
from torch.utils.data import RandomSampler

from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.loading import check_optimizer_state
from mmdeform_upgrade.readers import read_checkpoint

from ..conftest import run_tool
from .conftest import build_runner, train

# What a detector draws at random in a step (the sampler of positives), for the next one (YOLOX's sizes) and in its data
# (the flips), EMA, momentum and a schedule, and no seed in the config, so that every process draws its own.
SETTINGS = """
_base_ = ['tiny_upgrade.py']
custom_hooks = [dict(type='EMAHook', momentum=0.5), dict(type='DeformUpgradeHook'), dict(type='RunGuardHook')]
model = dict(
    train_cfg=dict(sampler=dict(type='RandomSampler', num=8, pos_fraction=0.5, add_gt_as_proposals=False)),
    data_preprocessor=dict(
        batch_augments=[dict(type='BatchSyncRandomResize', random_size_range=(80, 128), size_divisor=16, interval=1)]
    ),
)
randomness = dict(seed=None)
default_hooks = dict(checkpoint=dict(save_best=None))
"""
BY_ITERATION = """
train_dataloader = dict(sampler=dict(type='InfiniteSampler'))
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=8, val_interval=3)
param_scheduler = [dict(type='MultiStepLR', by_epoch=False, milestones=[3, 6])]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5, save_best=None))
"""
WORKERS = ['train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True']


def _differences(a, b, name=''):
    """Names of everything that is not the same in two nests of dicts, lists, tensors and numbers."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), name
        return [found for key in a for found in _differences(a[key], b[key], f'{name}.{key}')]
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), name
        return [found for i, pair in enumerate(zip(a, b, strict=True)) for found in _differences(*pair, f'{name}[{i}]')]
    return [] if (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b) else [name]


def _state(path):
    checkpoint = read_checkpoint(path)
    parts = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    assert all(checkpoint[part] for part in parts)
    return {part: checkpoint[part] for part in parts}


@pytest.fixture(scope='module')
def by_epoch(tiny_upgrade, tmp_path_factory):
    """Two epochs without a break: config, work directory and log."""
    config = tiny_upgrade.with_name('by_epoch.py')
    config.write_text(SETTINGS)
    work_dir = tmp_path_factory.mktemp('by_epoch')
    return config, work_dir, run_tool('train.py', config, '--work-dir', work_dir).stdout


def test_epochs_after_a_break_are_those_without_it(by_epoch, tmp_path):
    """Also with data workers where the first process had none."""
    config, work_dir, _ = by_epoch
    log = run_tool(
        'train.py', config, '--work-dir', tmp_path, '--resume', work_dir / 'epoch_1.pth', '--cfg-options', *WORKERS
    ).stdout
    assert 'resumed epoch: 1, iter: 4' in log and 'not bit for bit' not in log
    assert _differences(_state(work_dir / 'epoch_2.pth'), _state(tmp_path / 'epoch_2.pth')) == []
    assert _differences(_state(work_dir / 'epoch_1.pth'), _state(tmp_path / 'epoch_2.pth')), 'it did train'


def test_iterations_after_a_break_are_those_without_it(tiny_upgrade, tmp_path):
    config = tiny_upgrade.with_name('by_iteration.py')
    config.write_text(SETTINGS + BY_ITERATION)
    log = run_tool('train.py', config, '--work-dir', tmp_path / 'whole', '--cfg-options', *WORKERS).stdout
    assert log.count('Before its first step') == 1, 'scored before iteration 1, too'
    log = run_tool(
        'train.py', config, '--work-dir', tmp_path / 'resumed', '--resume', tmp_path / 'whole' / 'iter_5.pth'
    ).stdout
    assert 'resumed epoch: 0, iter: 5' in log and 'Advance dataloader 5 steps' in log
    whole, resumed = (_state(tmp_path / name / 'iter_8.pth') for name in ('whole', 'resumed'))
    assert _differences(whole, resumed) == []


def test_the_log_is_one_json_record_a_step_and_a_validation(by_epoch):
    _, work_dir, _ = by_epoch
    records = [json.loads(line) for line in next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    steps = [record for record in records if 'loss' in record]
    scores = [record['pascal_voc/mAP'] for record in records if 'pascal_voc/mAP' in record]
    assert [record['iter'] for record in steps] == list(range(1, 9))
    assert all(0 < record['loss'] < 100 and record['lr'] > 0 for record in steps)
    assert len(scores) == 2, 'before the first step, and after the last'


def test_resume_without_a_path_takes_the_latest_checkpoint(short_cfg):
    short_cfg.train_cfg.max_epochs = 1
    first = train(short_cfg)
    cfg = first.cfg.copy()
    cfg.resume, cfg.load_from, cfg.train_cfg.max_epochs = True, None, 2
    runner = build_runner(cfg)
    runner._work_dir = first.work_dir
    runner.train()
    assert runner._load_from == f'{first.work_dir}/epoch_1.pth' and runner.epoch == 2 and runner.iter == 4


@pytest.mark.parametrize(
    'changes,message',
    [
        (dict(), None),
        ({'train_dataloader.batch_size': 2}, r'batch_size 4 -> 2.*not bit for bit'),
    ],
)
def test_a_resume_that_cannot_be_exact_warns_and_goes_on(short_cfg, changes, message, caplog):
    first = train(short_cfg)
    path = f'{first.work_dir}/epoch_1.pth'
    if message is None:
        checkpoint, message = read_checkpoint(path), 'written without RunGuardHook.*not bit for bit'
        del checkpoint['meta']['exact_resume']
        torch.save(checkpoint, path)
    runner = build_runner(short_cfg, resume=True, load_from=path, **{'train_cfg.max_epochs': 2, **changes})
    runner.train()
    assert runner.epoch == 2
    assert re.search(message, _log(runner)), _log(runner)


ADAM = dict(optimizer=dict(type='Adam', lr=0.001))
APART = dict(constructor='OffsetOptimizerConstructor', optimizer=dict(type='SGD', lr=0.01))
OF_BIASES = dict(optimizer=dict(type='SGD', lr=0.01), paramwise_cfg=dict(bias_lr_mult=2.0))


@pytest.mark.parametrize(
    'saved,other,message',
    [
        (dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)), ADAM, r"has no 'step' \(for Adam\)"),
        (ADAM, dict(optimizer=dict(type='SGD', lr=0.01)), r"has no 'momentum' \(for SGD\)"),
        (APART, dict(APART, **ADAM), r"has no 'betas' \(for Adam and Adam\)"),
        (ADAM, dict(optimizer=dict(type='Adamax', lr=0.001)), r"has no 'exp_inf' \(for Adamax\)"),
        (APART, dict(optimizer=APART['optimizer']), 'loaded state dict has a different number of parameter groups'),
        (OF_BIASES, APART, 'the optimizer state has .* groups and 0 of offsets, this optimizer has 1 groups and 1'),
    ],
)
def test_the_state_of_another_optimizer_is_one_clear_error(short_cfg, tmp_path, saved, other, message):
    short_cfg.optim_wrapper = dict(type='OptimWrapper', **saved)
    path = f'{train(short_cfg).work_dir}/epoch_1.pth'
    build_runner(short_cfg, resume=True, load_from=path, **{'train_cfg.max_epochs': 2}).train()
    short_cfg.merge_from_dict(dict(resume=True, load_from=path, optim_wrapper=dict(_delete_=True, **other)))
    message = rf'resume: .*{message}.*: resume with the optim_wrapper that the run was started with'
    with pytest.raises(CheckpointError, match=message):
        build_runner(short_cfg).train()
    short_cfg.custom_hooks = []  # as of a baseline, which the tools resume
    with pytest.raises(CheckpointError, match=message):
        command_line.build_runner(Config(dict(short_cfg, work_dir=str(tmp_path / 'tool')))).train()


@OPTIMIZERS.register_module(force=True)
class Halving(torch.optim.SGD):
    """An optimizer of a user's, with a setting of its own that its pickled form does not hold."""

    def __init__(self, params, **settings):
        super().__init__(params, **settings)
        self.factor = 0.5

    def step(self, closure=None):
        for group in self.param_groups:
            group['lr'] *= self.factor
        return super().step(closure)


def test_a_users_own_optimizer_is_resumed(short_cfg):
    short_cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Halving', lr=0.01))
    path = f'{train(short_cfg).work_dir}/epoch_1.pth'
    runner = build_runner(short_cfg, resume=True, load_from=path, **{'train_cfg.max_epochs': 2})
    runner.train()
    assert runner.epoch == 2


def test_the_states_of_several_optimizers_are_left_to_mmengine():
    several = OptimWrapperDict(a=OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)))
    runner = Runner.__new__(Runner)
    runner.optim_wrapper, runner._resume = several, True
    check_optimizer_state(runner, {'optimizer': several.state_dict()})


@DATA_SAMPLERS.register_module(force=True)
class PyTorchsSampler(RandomSampler):
    """It draws from the process's random numbers."""

    def __init__(self, dataset, seed=None):
        super().__init__(dataset)


def test_a_sampler_without_a_generator_of_its_own_draws_as_the_run_without_a_break(short_cfg):
    short_cfg.train_dataloader.sampler = dict(type='PyTorchsSampler')
    short_cfg.train_cfg.max_epochs = 2
    whole = train(short_cfg)
    torch.rand(7)
    resumed = train(short_cfg, resume=True, load_from=f'{whole.work_dir}/epoch_1.pth')
    assert resumed.record.losses == whole.record.losses[-len(resumed.record.losses) :]


class _OpenEarly(Hook):
    """Opens the data as soon as the loop is built, as MMEngine does up to 0.10.7."""

    def before_run(self, runner):
        runner.train_loop.dataloader_iterator._ensure_iterator()


def test_data_that_were_opened_before_the_training_are_drawn_again(short_cfg):
    short_cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
    short_cfg.train_dataloader.update(sampler=dict(type='InfiniteSampler'), num_workers=1, persistent_workers=True)
    losses = [train(short_cfg, hooks).record.losses for hooks in ([], [_OpenEarly()])]
    assert losses[0] == losses[1]


@pytest.mark.parametrize('guard', [[], [dict(type='RunGuardHook', exact_resume=False, finite_interval=None)]])
def test_without_the_guard_the_data_are_read_as_mmengine_reads_them(short_cfg, guard):
    short_cfg.custom_hooks = [dict(type='DeformUpgradeHook'), *guard]
    runner = train(short_cfg)
    assert 'exact_resume' not in read_checkpoint(f'{runner.work_dir}/epoch_1.pth')['meta']
    assert not hasattr(runner.train_dataloader.dataset, '__getitems__')
    assert [type(hook).__name__ for hook in runner.hooks if 'mmdeform' in type(hook).__module__] == [
        *(hook['type'] for hook in guard),
        'DeformUpgradeHook',
    ], 'and no hook brings another'


def _log(runner):
    return next(Path(runner.log_dir).glob('*.log')).read_text()
