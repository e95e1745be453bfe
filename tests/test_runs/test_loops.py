"""Loops by iteration, the best checkpoint, stopping early, and settings from the command line."""

import copy
import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmdeform_upgrade.layers import upgraded_layers
from mmdeform_upgrade.mm import command_line

from .conftest import build_runner


@pytest.fixture
def scored_cfg(tiny_upgrade_cfg):
    """The upgraded detector, scored on four pictures."""
    cfg = tiny_upgrade_cfg
    cfg.train_dataloader.dataset.indices = 8
    cfg.val_dataloader.dataset.indices = 4
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.param_scheduler = None
    return cfg


def _unchanging(cfg):
    """Training that changes nothing, so that no score is better than the first."""
    cfg.optim_wrapper.optimizer.update(lr=1e-12)
    cfg.model.backbone.norm_cfg = dict(type='BN', momentum=0.0)
    cfg.model.neck.norm_cfg = dict(type='BN', eps=1e-3, momentum=0.0)
    return cfg


def _log(runner):
    return next(Path(runner.log_dir).glob('*.log')).read_text()


def _by_iteration(cfg):
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=2)
    cfg.log_processor = dict(by_epoch=False)
    return cfg


def test_iterations_begin_with_the_baselines_score_which_counts_for_the_best(scored_cfg):
    cfg = _unchanging(_by_iteration(scored_cfg))
    runner = build_runner(cfg)
    runner.train()
    log = _log(runner)
    assert len(re.findall('Before its first step', log)) == 1
    assert log.index('Before its first step') < log.index('Iter(train)')
    assert len(set(re.findall(r'Iter\(val\).*pascal_voc/mAP: (\S+)', log))) == 1
    assert len(re.findall(r'Iter\(val\).*pascal_voc/mAP', log)) == 3
    assert [path.name for path in Path(runner.work_dir).glob('best_*')] == ['best_pascal_voc_mAP_iter_0.pth']


def test_a_validation_names_the_layer_whose_taps_have_left_the_map_once(scored_cfg):
    spoil = dict(type='Spoil', layer='backbone.layer4.1.conv1', value=300.0)
    runner = build_runner(_by_iteration(scored_cfg), [spoil])
    runner.train()
    warned = re.findall(r'WARNING - (\S+): the offsets have led (\d+) % of its taps out of its map', _log(runner))
    assert warned == [('backbone.layer4.1.conv1', '100')]
    assert not any(layer.conv_offset._forward_hooks for layer in upgraded_layers(runner.model).values())


def test_a_validation_before_the_first_step_is_measured_warns_of_nothing(scored_cfg):
    cfg = _by_iteration(scored_cfg)
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    runner = build_runner(cfg, [dict(type='Spoil', layer='backbone.layer4.1.conv1', value=300.0, iteration=0)])
    runner.train()
    assert 'Iter(val)' in _log(runner) and 'the offsets have led' not in _log(runner)


def test_training_stops_early_when_the_score_does_not_rise_above_the_baselines(scored_cfg):
    cfg = _unchanging(_by_iteration(scored_cfg))
    cfg.train_cfg.update(max_iters=20, val_interval=1)
    stop = dict(type='EarlyStoppingHook', monitor='pascal_voc/mAP', rule='greater', patience=2, min_delta=0.01)
    runner = build_runner(cfg, [stop])
    runner.train()
    assert 'the monitored metric did not improve' in _log(runner)
    assert runner.iter == 2, "the baseline's score is the first of the three that it compares"


def test_cfg_options_reach_the_upgrade(tiny_upgrade, tmp_path):
    arguments = command_line.parser('').parse_args(
        [
            str(tiny_upgrade),
            '--work-dir',
            str(tmp_path),
            '--cfg-options',
            'model.backbone.targets=last:1',
            'model.backbone.deform_groups=4',
            'optim_wrapper.optimizer.lr=0.5',
            'custom_hooks.1.val_before_train=False',
        ]
    )
    cfg = command_line.load_config(arguments)
    runner = build_runner(copy.deepcopy(cfg))
    layers = [name for name, _ in runner.model.named_modules() if name.endswith('conv_offset')]
    assert layers == ['backbone.layer4.1.conv2.conv_offset']
    assert runner.model.backbone.layer4[1].conv2.deform_groups == 4
    assert runner.cfg.optim_wrapper.optimizer.lr == 0.5
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'DeformUpgradeHook')
    assert hook.val_before_train is False and Config.fromfile(tiny_upgrade).model.backbone.targets == 'last:3'
