"""Schedules by iterations, and lengths that are given in steps."""

import pytest
from mmengine.config import Config

from mmdeform_upgrade import shorten_schedule
from mmdeform_upgrade.errors import ConfigError


def _cfg(total, schedulers, unit='epochs', **more):
    return Config(dict(train_cfg={f'max_{unit}': total, 'val_interval': 1}, param_scheduler=schedulers, **more))


def test_iteration_based_poly_schedules_shrink_with_their_intervals():
    cfg = _cfg(
        80000,
        [
            dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
            dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=1500, end=80000, by_epoch=False),
        ],
        'iters',
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=8000)),
    )
    cfg.train_cfg.val_interval = 8000
    short = shorten_schedule(cfg)
    assert short.train_cfg.max_iters == 20000 and short.train_cfg.val_interval == 2000
    warm, poly = short.param_scheduler
    assert (warm.end, poly.begin, poly.end, poly.power) == (375, 375, 20000, 0.9)
    assert short.default_hooks.checkpoint.interval == 2000


def test_iteration_based_steps_follow_the_paper():
    steps = dict(type='MultiStepLR', by_epoch=False, milestones=[60000, 80000])
    short = shorten_schedule(_cfg(90000, [steps], 'iters'))
    assert list(short.param_scheduler[0].milestones) == [15000, 18750]


def test_epochs_become_steps_with_all_that_counts_them():
    cfg = _cfg(
        12,
        [
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500),
            dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11]),
            dict(type='CosineAnnealingLR', T_max=6, begin=6, end=12, by_epoch=True, convert_to_iter_based=True),
            dict(type='ReduceOnPlateauLR', monitor='loss', patience=4, by_epoch=True),
        ],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=2), logger=dict(type='LoggerHook')),
        custom_hooks=[dict(type='EMAHook', begin_iter=3)],
        train_dataloader=dict(sampler=dict(type='DefaultSampler', shuffle=True, round_up=False)),
    )
    cfg.train_cfg.update(type='EpochBasedTrainLoop', dynamic_intervals=[(9, 1)])
    short = shorten_schedule(cfg, max_iters=120)
    assert short.train_cfg == dict(
        type='IterBasedTrainLoop', max_iters=120, val_interval=10, dynamic_intervals=[(90, 10)]
    )
    warm, steps, cosine, plateau = short.param_scheduler
    assert (warm.end, warm.by_epoch) == (12, False), 'a tenth of the steps at most'
    assert (list(steps.milestones), steps.end, steps.by_epoch) == ([80, 100], 120, False)
    assert (cosine.T_max, cosine.begin, cosine.end) == (60, 60, 120) and 'convert_to_iter_based' not in cosine
    assert plateau.by_epoch and plateau.patience == 4, 'it counts validations, which are as many'
    assert (short.default_hooks.checkpoint.interval, short.default_hooks.checkpoint.by_epoch) == (20, False)
    assert short.train_dataloader.sampler == dict(type='InfiniteSampler', shuffle=True)
    assert short.log_processor.by_epoch is False and short.custom_hooks[0].begin_iter == 3


WARM_UP = dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000)


@pytest.mark.parametrize(
    'scheduler,expected',
    [
        (dict(type='CosineAnnealingLR', T_max=90000), dict(T_max=500)),
        (dict(type='CosineAnnealingLR', T_max=89000, begin=1000), dict(T_max=494, begin=6)),
        (dict(type='CosineRestartLR', periods=[30000, 60000]), dict(periods=[167, 333])),
        (dict(type='MultiStepLR', milestones=[60000, 80000]), dict(milestones=[333, 417])),
        (dict(type='StepLR', step_size=30000), dict(milestones=[333, 417])),
        (dict(type='ExponentialLR', gamma=0.999, end=90000), dict(gamma=pytest.approx(0.999**180), end=500)),
    ],
)
def test_schedulers_of_iterations_tell_how_many_a_training_of_epochs_has(scheduler, expected):
    warm, short = shorten_schedule(_cfg(12, [WARM_UP, dict(scheduler, by_epoch=False)]), max_iters=500).param_scheduler
    assert {key: short[key] for key in expected} == expected
    assert warm.end == (50 if scheduler['type'] == 'StepLR' else 6), 'a tenth, where nothing tells'


def test_an_exponential_fall_by_an_unknown_number_of_iterations_is_refused():
    fall = dict(type='ExponentialLR', gamma=0.999, by_epoch=False)
    with pytest.raises(ConfigError, match='none of the param_scheduler says how many.*give epoch_ratio'):
        shorten_schedule(_cfg(12, [WARM_UP, fall]), max_iters=500)


@pytest.mark.parametrize('length,expected', [({}, 25), (dict(max_iters=8), 1), (dict(max_iters=500), 50)])
def test_hooks_that_wait_for_an_iteration_wait_for_less_in_a_training_of_epochs(length, expected):
    cfg = _cfg(12, [], custom_hooks=[dict(type='EMAHook', begin_iter=100)])
    assert shorten_schedule(cfg, **length).custom_hooks[0].begin_iter == expected


def test_a_short_training_does_not_validate_as_often_as_a_long_one():
    cfg = _cfg(240, [], default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=10)))
    short = shorten_schedule(cfg, max_iters=400)
    assert (short.train_cfg.val_interval, short.default_hooks.checkpoint.interval) == (34, 34)
    assert shorten_schedule(cfg, max_iters=4).train_cfg.val_interval == 1
    assert shorten_schedule(cfg).train_cfg.val_interval == 1


def test_a_plateau_that_waits_for_an_epoch_is_refused_in_steps():
    plateau = dict(type='ReduceOnPlateauLR', monitor='loss', begin=10)
    with pytest.raises(ConfigError, match='ReduceOnPlateauLR begins after 10 epochs.*give epoch_ratio'):
        shorten_schedule(_cfg(24, [plateau]), max_iters=400)


def test_a_length_in_steps_may_be_longer_than_the_baselines():
    cfg = _cfg(100, [dict(type='PolyLR', by_epoch=False, begin=0, end=100)], 'iters')
    longer = shorten_schedule(cfg, max_iters=250)
    assert (longer.train_cfg.max_iters, longer.param_scheduler[0].end) == (250, 250)


@pytest.mark.parametrize('steps', [0, -5, 2.5, True, '400'])
def test_a_number_of_steps_that_is_none_is_refused(steps):
    with pytest.raises(ConfigError, match='max_iters=.*expected a whole number of steps, at least 1'):
        shorten_schedule(_cfg(12, []), max_iters=steps)


def test_what_only_an_epoch_could_switch_is_refused_in_steps():
    hook = dict(type='PipelineSwitchHook', switch_epoch=280)
    with pytest.raises(ConfigError, match=r'PipelineSwitchHook counts epochs \(switch_epoch=280\).*epoch_ratio'):
        shorten_schedule(_cfg(300, [], custom_hooks=[hook]), max_iters=400)
    cfg = _cfg(12, [])
    cfg.train_cfg.type = 'SelfTrainingLoop'
    with pytest.raises(ConfigError, match='training loop SelfTrainingLoop counts epochs: give epoch_ratio'):
        shorten_schedule(cfg, max_iters=400)


def test_a_config_without_hooks_of_its_own_saves_and_logs_by_steps():
    hooks = shorten_schedule(_cfg(12, []), max_iters=120).default_hooks
    assert hooks.checkpoint == dict(type='CheckpointHook', interval=10, by_epoch=False)
    assert hooks.logger == dict(type='LoggerHook', log_metric_by_epoch=False)
    assert (
        shorten_schedule(_cfg(12, [], default_hooks=dict(checkpoint=None)), max_iters=9).default_hooks.checkpoint
        is None
    )
    assert 'default_hooks' not in shorten_schedule(_cfg(12, []))


def test_a_second_checkpoint_hook_counts_steps_too():
    hook = dict(type='CheckpointHook', interval=4, by_epoch=True, out_dir='extra')
    (short,) = shorten_schedule(_cfg(12, [], custom_hooks=[hook]), max_iters=60).custom_hooks
    assert short == dict(hook, interval=20, by_epoch=False)


def test_a_warm_up_alone_is_not_the_whole_schedule():
    warm_up = dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500)
    assert shorten_schedule(_cfg(12, [warm_up]), max_iters=400).param_scheduler[0].end == 40
    decay = dict(type='LinearLR', start_factor=1.0, end_factor=0.1, by_epoch=False, begin=0, end=500)
    assert shorten_schedule(_cfg(12, [decay]), max_iters=400).param_scheduler[0].end == 400
