"""Schedules by epochs: a quarter of the length, decays where the paper has them, everything that counts epochs."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope

from mmdeform_upgrade import shorten_schedule
from mmdeform_upgrade.config import describe_schedule
from mmdeform_upgrade.errors import ConfigError

from ..conftest import MMDET_CONFIGS


def _cfg(total, schedulers, unit='epochs', **more):
    return Config(dict(train_cfg={f'max_{unit}': total, 'val_interval': 1}, param_scheduler=schedulers, **more))


def _step(**more):
    return dict(type='MultiStepLR', by_epoch=True, gamma=0.1, **more)


# Section 4 of the paper: a quarter of the epochs, decays at 2/3 and 5/6 of them.
@pytest.mark.parametrize(
    'epochs,milestones,expected,decays',
    [
        (240, [160, 200], 60, [40, 50]),
        (200, [160, 180], 50, [33, 42]),
        (280, [220, 250], 70, [47, 58]),
        (20, [14, 18], 5, [3, 4]),
    ],
)
def test_step_schedules_follow_the_paper(epochs, milestones, expected, decays):
    short = shorten_schedule(_cfg(epochs, [_step(milestones=milestones, begin=0, end=epochs)]))
    assert short.train_cfg.max_epochs == expected
    (scheduler,) = short.param_scheduler
    assert list(scheduler.milestones) == decays and scheduler.gamma == 0.1 and scheduler.end == expected


@pytest.mark.parametrize('epochs,expected', [(12, 3), (36, 9), (16, 4), (8, 2), (4, 1)])
@pytest.mark.parametrize('iterations', [7, 50, 1429])
def test_every_length_falls_twice_in_a_real_run(epochs, expected, iterations):
    """12 epochs are mmdet's most common schedule; of a quarter, 2.5 epochs are no whole number."""
    steps = [_step(milestones=[epochs - 2, epochs - 1], begin=0, end=epochs)]
    rates = _rates(shorten_schedule(_cfg(epochs, steps)), expected, iterations)
    falls = [at for at in range(1, len(rates)) if rates[at] < 0.5 * rates[at - 1]]
    wanted = [part * expected * iterations for part in (2 / 3, 5 / 6)]
    if expected >= 5:
        wanted = [round(part * expected) * iterations for part in (2 / 3, 5 / 6)]
    assert [fall - want for fall, want in zip(falls, wanted, strict=True)] == pytest.approx([0, 0], abs=1)
    assert [rates[0], rates[falls[0]], rates[-1]] == pytest.approx([0.02, 0.002, 0.0002])


def _rates(cfg, epochs, iterations):
    """The learning rate of every iteration, by MMEngine's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    schedulers = []
    for settings in cfg.param_scheduler:
        settings, by_epoch = dict(settings), settings.get('by_epoch', True)
        cls = PARAM_SCHEDULERS.get(settings.pop('type'))
        settings.setdefault('end', epochs if by_epoch else epochs * iterations)
        if settings.pop('convert_to_iter_based', False):
            schedulers.append(cls.build_iter_from_epoch(optimizer, epoch_length=iterations, **settings))
        else:
            schedulers.append(cls(optimizer, **settings))
    rates = []
    for step in range(1, epochs * iterations + 1):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or step % iterations == 0:
                scheduler.step()
    return rates


def test_a_decay_within_an_epoch_can_be_read():
    short = shorten_schedule(_cfg(12, [_step(milestones=[8, 11], begin=0, end=12)]))
    assert describe_schedule(short) == (
        '3 epochs; MultiStepLR (epochs: once, at 2.0, gamma 0.1); '
        'MultiStepLR (epochs: once, at 2.5, gamma 0.1); validation every 1'
    )


@pytest.mark.parametrize('epochs', [24, 8])
def test_decays_happen_also_where_the_scheduler_was_left_to_end_before_them(epochs):
    """As in mmdet's faster-rcnn_r50-caffe_fpn_ms-2x_coco.py, whose rate never falls."""
    short = shorten_schedule(_cfg(epochs, [_step(milestones=[epochs - 8, epochs - 1], begin=0, end=epochs // 2)]))
    assert _rates(short, epochs // 4, 50)[-1] == pytest.approx(0.0002)


def test_lengths_written_as_floats_are_counts_as_for_mmengine():
    cfg = _cfg(1e5, [dict(type='PolyLR', by_epoch=False, end=1e5)], 'iters')
    cfg.train_cfg.val_interval = 1e5 / 5
    short = shorten_schedule(cfg)
    assert repr((short.train_cfg.max_iters, short.train_cfg.val_interval, short.param_scheduler[0].end)) == (
        '(25000, 5000, 25000)'
    )


def test_decays_that_several_schedulers_share_are_two_all_the_same():
    cfg = _cfg(240, [_step(milestones=[100]), _step(milestones=[200], begin=120)])
    assert shorten_schedule(cfg).param_scheduler == [_step(milestones=[40, 50])]


def test_what_was_shortened_can_be_shortened_again():
    once = shorten_schedule(_cfg(12, [_step(milestones=[8, 11], begin=0, end=12)]))
    assert [scheduler.begin for scheduler in once.param_scheduler] == [2.0, 2.5]
    twice = shorten_schedule(once, 1 / 3)
    assert twice.train_cfg.max_epochs == 1
    assert [scheduler.begin for scheduler in twice.param_scheduler] == [0.6667, 0.8334]
    (steps,) = shorten_schedule(once, max_iters=300).param_scheduler[:1]
    assert (steps.begin, steps.milestones, steps.by_epoch) == (0, [200, 250], False)


def test_a_gamma_of_its_own_becomes_the_papers():
    short = shorten_schedule(_cfg(240, dict(type='StepLR', step_size=30, gamma=0.5)))
    assert short.param_scheduler == [dict(type='MultiStepLR', milestones=[40, 50], gamma=0.1)]


def test_the_original_is_not_changed():
    cfg = _cfg(240, [_step(milestones=[160, 200])])
    before = copy.deepcopy(cfg)
    shorten_schedule(cfg)
    assert cfg.to_dict() == before.to_dict()


def test_ratio_one_keeps_every_other_schedule():
    schedulers = [
        dict(type='LinearLR', by_epoch=False, begin=0, end=500, start_factor=0.001),
        dict(type='CosineAnnealingLR', begin=5, end=285, T_max=280, by_epoch=True, eta_min=0.1),
    ]
    cfg = _cfg(300, schedulers)
    assert shorten_schedule(cfg, 1).to_dict() == cfg.to_dict()


def test_warm_up_and_cosine_keep_their_shape():
    cfg = _cfg(
        300,
        [
            dict(type='QuadraticWarmupLR', by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
            dict(type='CosineAnnealingLR', begin=5, T_max=285, end=285, by_epoch=True, convert_to_iter_based=True),
            dict(type='CosineAnnealingLR', begin=150, T_max=150, end=300, by_epoch=True),
            dict(type='ConstantLR', by_epoch=True, factor=1, begin=285, end=300),
        ],
    )
    warm, cosine, half, constant = shorten_schedule(cfg).param_scheduler
    assert (warm.begin, warm.end) == (0, 1) and warm.convert_to_iter_based
    assert (cosine.begin, cosine.end, cosine.T_max) == (1, 71, 71)
    assert (half.begin, half.end, half.T_max) == (38, 75, 37)
    assert (constant.begin, constant.end) == (71, 75)


@pytest.mark.parametrize('steps,left', [(4, 0), (2, 0), (8, 2), (1000, 250)])
@pytest.mark.parametrize('kind', ['LinearLR', 'ConstantLR', 'QuadraticWarmupLR'])
def test_warm_up_always_reaches_the_full_rate(steps, left, kind):
    extra = {} if kind == 'QuadraticWarmupLR' else {'start_factor' if kind == 'LinearLR' else 'factor': 0.001}
    if kind == 'QuadraticWarmupLR':
        init_default_scope('mmdet')
    short = shorten_schedule(_cfg(8, [dict(type=kind, by_epoch=False, begin=0, end=steps, **extra)]))
    assert sum(scheduler.end for scheduler in short.param_scheduler) == left
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedulers = [PARAM_SCHEDULERS.build(dict(optimizer=optimizer, **s)) for s in short.param_scheduler]
    for _ in range(left + 2):
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert optimizer.param_groups[0]['lr'] == pytest.approx(1)


@pytest.mark.parametrize('interval,patience,expected', [(1, 10, 3), (8, 10, 10), (1, 2, 1)])
def test_a_plateaus_patience_counts_the_validations_that_are_left(interval, patience, expected):
    plateau = dict(type='ReduceOnPlateauLR', monitor='loss', patience=patience, cooldown=patience, begin=8, end=64)
    cfg = _cfg(64, [plateau])
    cfg.train_cfg.val_interval = interval
    (short,) = shorten_schedule(cfg).param_scheduler
    assert (short.patience, short.cooldown) == (expected, expected)
    assert (short.begin, short.end) == (2, 16), 'of epochs, however often they are validated'


def test_hooks_that_switch_at_an_epoch_switch_in_proportion():
    cfg = _cfg(
        300,
        [],
        custom_hooks=[
            dict(type='YOLOXModeSwitchHook', num_last_epochs=15, priority=48),
            dict(type='EMAHook', momentum=0.1),
            dict(type='PipelineSwitchHook', switch_epoch=280),
        ],
    )
    cfg.train_cfg.dynamic_intervals = [(280, 1)]
    short = shorten_schedule(cfg)
    assert [h.get('num_last_epochs', h.get('switch_epoch')) for h in short.custom_hooks] == [4, None, 70]
    assert [tuple(i) for i in short.train_cfg.dynamic_intervals] == [(70, 1)]
    last = _cfg(
        20, [], custom_hooks=[dict(type='PipelineSwitchHook', switch_epoch=19), dict(type='EMAHook', begin_epoch=19)]
    )
    assert [h.get('switch_epoch', h.get('begin_epoch')) for h in shorten_schedule(last).custom_hooks] == [4, 4], (
        'of 0 to 4'
    )
    short = _cfg(2, [], custom_hooks=[dict(type='PipelineSwitchHook', switch_epoch=1)])
    assert shorten_schedule(short, 0.5).custom_hooks[0].switch_epoch == 0, 'of a single epoch'


def test_a_hook_that_schedules_the_rate_is_shortened_with_the_training():
    hook = dict(type='YOLOv5ParamSchedulerHook', lr_factor=0.01, max_epochs=300, warmup_epochs=4, warmup_mim_iter=1000)
    cfg = _cfg(300, None, default_hooks=dict(param_scheduler=hook))
    short = shorten_schedule(cfg).default_hooks.param_scheduler
    assert short == dict(hook, max_epochs=75, warmup_epochs=1, warmup_mim_iter=250)
    with pytest.raises(ConfigError, match=r'YOLOv5ParamSchedulerHook counts epochs \(max_epochs=300\)'):
        shorten_schedule(cfg, max_iters=400)


def test_exponential_decay_reaches_the_same_rate():
    short = shorten_schedule(_cfg(100, dict(type='ExponentialLR', gamma=0.95, by_epoch=True)))
    assert short.param_scheduler[0].gamma ** 25 == pytest.approx(0.95**100)
    short = shorten_schedule(_cfg(100, dict(type='ExponentialLR', gamma=None, by_epoch=True)))
    assert short.param_scheduler[0].gamma is None, "the scheduler's own default"


@pytest.mark.parametrize('ratio', [0, -1, 1.5, float('nan'), '0.25', None, True])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ConfigError, match=r'is not in \(0, 1\]'):
        shorten_schedule(_cfg(12, []), ratio)


def test_a_config_without_a_length_is_refused():
    with pytest.raises(ConfigError, match='neither train_cfg.max_epochs nor train_cfg.max_iters'):
        shorten_schedule(Config(dict(model=dict(type='x'))))


@pytest.mark.parametrize(
    'name',
    [
        'ssd/ssd512_coco.py',
        'yolox/yolox_s_8xb8-300e_coco.py',
        'rtmdet/rtmdet_s_8xb32-300e_coco.py',
        'detr/detr_r50_8xb2-150e_coco.py',
    ],
)
def test_schedules_of_the_zoo_build_and_end_with_the_training(name):
    init_default_scope('mmdet')
    cfg = Config.fromfile(MMDET_CONFIGS / name)
    short = shorten_schedule(cfg)
    total = short.train_cfg.max_epochs
    assert total == round(cfg.train_cfg.max_epochs / 4 + 1e-9)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    for scheduler in short.param_scheduler:
        if scheduler.get('by_epoch', True):
            assert scheduler.get('end', total) <= total
        args = {k: v for k, v in scheduler.items() if k != 'convert_to_iter_based'}
        PARAM_SCHEDULERS.build(dict(optimizer=optimizer, **args))
    assert str(total) in describe_schedule(short)
