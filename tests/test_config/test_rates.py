"""Rates as the optimizer has them that MMEngine builds of a written config, under its schedulers."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from torch import nn

from mmdeform_upgrade import upgrade_config
from mmdeform_upgrade.config.rates import check_offset_rates, rate_changes, without_offset_optimizer
from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.offsets.optimizer import OFFSET_LR

from ..conftest import ROOT
from .optimizers import ADAM, LR, Network, groups


def _split(groups):
    offsets = {name: group for name, group in groups.items() if 'conv_offset' in name}
    assert len(offsets) == 2
    return offsets, {name: group for name, group in groups.items() if name not in offsets}


CONSTRUCTORS = {
    'plain': {},
    'custom_keys': dict(paramwise_cfg=dict(custom_keys={'backbone.stages.1.0': dict(lr_mult=0.1, decay_mult=0.0)})),
    'frameworks': dict(paramwise_cfg=dict(dcn_offset_lr_mult=0.1, bias_lr_mult=2.0, bias_decay_mult=0.0)),
    'layer_wise': dict(
        constructor='mmdet.LearningRateDecayOptimizerConstructor',
        paramwise_cfg=dict(decay_rate=0.5, decay_type='layer_wise', num_layers=6),
    ),
    'stage_wise': dict(
        constructor='mmseg.LearningRateDecayOptimizerConstructor',
        paramwise_cfg=dict(decay_rate=0.5, decay_type='stage_wise', num_layers=6),
    ),
}


@pytest.mark.parametrize('name', CONSTRUCTORS)
@pytest.mark.parametrize('kind', ['SGD', 'AdamW', 'Adagrad'])
def test_only_the_offsets_rates_differ_from_the_baselines(name, kind):
    import mmdet.engine  # noqa: F401  registers the constructors
    import mmseg.engine  # noqa: F401

    wrapper = dict(type='OptimWrapper', optimizer=dict(type=kind, lr=0.01, weight_decay=0.1), **CONSTRUCTORS[name])
    _, before = _split(groups(wrapper))
    for asked, expected in (
        (dict(offset_optimizer='adam'), OFFSET_LR),
        (dict(offset_optimizer='adam', offset_lr=0.005), 0.005),
        (dict(offset_optimizer='same', offset_lr_mult=10.0), 0.1),
    ):
        changed = Config(dict(optim_wrapper=wrapper))
        changed.merge_from_dict(rate_changes(changed, **asked))
        offsets, others = _split(groups(changed.optim_wrapper))
        assert {group['lr'] for group in offsets.values()} == {expected}
        for key, group in others.items():
            assert (group['lr'], group['weight_decay']) == (before[key]['lr'], before[key]['weight_decay']), key


def test_the_frameworks_own_setting_is_honoured():
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01), **CONSTRUCTORS['frameworks'])))
    cfg.optim_wrapper.optimizer.weight_decay = 0.1
    with pytest.raises(ConfigError, match=r"gives paramwise_cfg.dcn_offset_lr_mult to mmcv's own layers only: set"):
        check_offset_rates(cfg)
    cfg.merge_from_dict(rate_changes(cfg, offset_optimizer=None))
    check_offset_rates(cfg)
    offsets, others = _split(groups(cfg.optim_wrapper))
    assert {(group['lr'], group['weight_decay']) for group in offsets.values()} == {(0.001, 0.1)}
    assert others['head.bias']['lr'] == 0.02 and others['head.bias']['weight_decay'] == 0


SCHEDULERS = [
    dict(type='ConstantLR', factor=0.1, end=4),
    dict(type='CosineAnnealingLR', T_max=8, eta_min=0.005),
    dict(type='CosineRestartLR', periods=[4, 4], restart_weights=[1, 0.5], eta_min=0.001),
    dict(type='ExponentialLR', gamma=0.8),
    dict(type='LinearLR', start_factor=0.1, end=4),
    dict(type='MultiStepLR', milestones=[3, 6]),
    dict(type='OneCycleLR', eta_max=0.5, total_steps=8),
    dict(type='PolyLR', eta_min=0.005, power=0.9, end=8),
    dict(type='StepLR', step_size=3),
    dict(type='ReduceOnPlateauLR', patience=1, min_value=0.004, monitor='loss', rule='less'),
    dict(type='mmdet.QuadraticWarmupLR', end=4),
]


def test_every_scheduler_of_mmengine_is_here():
    known = {name for name in PARAM_SCHEDULERS.module_dict if name.endswith('LR')}
    assert known == {scheduler['type'] for scheduler in SCHEDULERS} - {'mmdet.QuadraticWarmupLR'}


@pytest.mark.parametrize('scheduler', SCHEDULERS, ids=lambda scheduler: scheduler['type'])
@pytest.mark.parametrize(
    'offset_optimizer', [dict(type='Adam', lr=OFFSET_LR), dict(lr_mult=10.0)], ids=['adam', 'same']
)
def test_offsets_follow_the_shape_of_every_schedule(scheduler, offset_optimizer):
    init_default_scope('mmdet')
    network = Network()
    settings = dict(optimizer=LR, constructor=ADAM['constructor'], offset_optimizer=offset_optimizer)
    wrapper = build_optim_wrapper(network, Config(settings)._cfg_dict)
    built = PARAM_SCHEDULERS.build(dict(scheduler, by_epoch=True), default_args=dict(optimizer=wrapper, epoch_length=2))
    peak = scheduler.get('eta_max', 0.01)
    own = offset_optimizer.get('lr', 10 * peak)
    seen = []
    for _ in range(8):
        weights, offsets = wrapper.optimizer.param_groups
        seen.append(weights['lr'])
        assert offsets['lr'] / own == pytest.approx(weights['lr'] / peak)
        wrapper.step()
        built.step(*([{'loss': 1.0}] if 'Plateau' in scheduler['type'] else []))
    assert len(set(seen)) > 1


@pytest.mark.parametrize('kind', ['SGD', 'AdamW'])
def test_momentum_schedules_go_on(kind):
    optimizer = dict(type=kind, lr=0.01, **({'momentum': 0.9} if kind == 'SGD' else {}))
    wrapper = build_optim_wrapper(Network(), Config(dict(optimizer=optimizer, **ADAM))._cfg_dict)
    scheduler = PARAM_SCHEDULERS.build(dict(type='LinearMomentum', start_factor=0.5, end=4, optimizer=wrapper))
    wrapper.step()
    scheduler.step()
    weights, offsets = wrapper.optimizer.param_groups
    found = weights['momentum'] if kind == 'SGD' else weights['betas'][0]
    assert found == pytest.approx(0.9 * 2 / 3) and 0 < offsets['betas'][0] < 1


def test_the_rate_of_the_fine_tune_includes_what_schedulers_name():
    cfg = Config(
        dict(
            optim_wrapper=dict(optimizer=LR),
            param_scheduler=[
                dict(type='OneCycleLR', eta_max=0.5, total_steps=8),
                dict(type='PolyLR', eta_min=1e-4),
                dict(type='CosineAnnealingMomentum', eta_min=0.5, T_max=3),
            ],
        )
    )
    changed = rate_changes(cfg, lr_mult=0.1)
    assert changed['optim_wrapper']['optimizer']['lr'] == 0.001
    named = [scheduler.get('eta_max', scheduler.get('eta_min')) for scheduler in changed['param_scheduler']]
    assert named == [0.05, 1e-5, 0.5]


@pytest.mark.parametrize(
    'asked,message',
    [
        (dict(offset_optimizer='adam', offset_lr_mult=10.0), "offset_lr_mult=10.0 multiplies the weights' rate"),
        (dict(offset_optimizer='same', offset_lr=0.1), 'offset_lr=0.1 is the rate of Adam'),
        (dict(offset_optimizer='sgd'), "expected 'same' or 'adam'"),
        (dict(offset_lr=-1), 'offset_lr=-1 is not a positive number'),
        (dict(offset_lr=0.0), 'offset_lr=0.0 is not a positive number'),
    ],
)
def test_settings_that_contradict_each_other_are_refused(asked, message):
    with pytest.raises(ConfigError, match=message):
        rate_changes(Config(dict(optim_wrapper=dict(optimizer=LR))), **asked)


def test_a_network_without_offsets_is_refused():
    with pytest.raises(ConfigError, match='no offset branches that train: upgrade a part of it'):
        groups(dict(ADAM, optimizer=LR), nn.Conv2d(3, 3, 3))


@pytest.mark.parametrize('paramwise', [{}, dict(custom_keys={'head': dict(lr_mult=2.0)})])
def test_offsets_alone_follow_the_schedule_without_a_state_for_the_rest(paramwise):
    network = Network().requires_grad_(False)
    for parameter in network.backbone.stages[1][0].conv_offset.parameters():
        parameter.requires_grad_(True)
    settings = Config(dict(ADAM, optimizer=LR, paramwise_cfg=paramwise))._cfg_dict
    wrapper = build_optim_wrapper(network, settings)
    scheduler = PARAM_SCHEDULERS.build(dict(type='StepLR', step_size=1, optimizer=wrapper))
    network.backbone.stages[1][0](torch.ones(1, 4, 4, 4)).sum().backward()
    wrapper.step()
    scheduler.step()
    weights, offsets = wrapper.optimizer.param_groups
    assert weights['params'] == [] and offsets['lr'] == pytest.approx(OFFSET_LR / 10)
    assert len(wrapper.optimizer.state) == 2


def test_what_an_upgrade_wrote_is_taken_back():
    wrapper = dict(optimizer=LR, constructor='Mine')
    cfg = Config(dict(optim_wrapper=wrapper))
    cfg.merge_from_dict(rate_changes(cfg, offset_optimizer='adam'))
    assert cfg.optim_wrapper.base_constructor == 'Mine'
    assert without_offset_optimizer(cfg.optim_wrapper) == wrapper


def test_a_second_upgrade_keeps_the_offsets_optimizer_or_replaces_it():
    paramwise = dict(bias_lr_mult=2.0)
    cfg = Config(dict(optim_wrapper=dict(optimizer=LR, constructor='Mine', paramwise_cfg=paramwise)))
    cfg.merge_from_dict(rate_changes(cfg, offset_optimizer='adam', offset_lr=0.1))
    assert rate_changes(cfg, offset_optimizer=None) == {}
    for asked, expected in (
        (dict(offset_optimizer=None, offset_lr=0.2), dict(type='Adam', lr=0.2)),
        (dict(offset_optimizer='same'), dict(lr_mult=1.0)),
        (dict(offset_optimizer=None, offset_lr_mult=3.0), dict(lr_mult=3.0)),
    ):
        again = copy.deepcopy(cfg)
        again.merge_from_dict(rate_changes(again, **asked))
        assert again.optim_wrapper.offset_optimizer == expected
        assert again.optim_wrapper.base_constructor == 'Mine'


def test_rates_of_the_fine_tune_and_its_offsets_are_factors():
    cfg = Config.fromfile(ROOT / 'configs/ssd512_upgrade.py')
    changed = upgrade_config(
        Config.fromfile(ROOT / 'configs/ssd/ssd512_r50_240e_voc0712.py'),
        load_from='x.pth',
        lr_mult=0.3,
        offset_lr_mult=10.0,
    )
    assert changed.optim_wrapper.optimizer == {**cfg.optim_wrapper.optimizer, 'lr': 0.0003}
    assert changed.optim_wrapper.offset_optimizer == {'lr_mult': 10.0}
    assert rate_changes(cfg) == {}, 'nothing is asked, nothing changes'


@pytest.mark.parametrize(
    'rates',
    [
        dict(lr_mult=0),
        dict(lr_mult=-1.0),
        dict(offset_lr_mult=float('nan')),
        dict(offset_lr_mult='10'),
        dict(lr_mult=float('inf')),
        dict(lr_mult=True),
    ],
)
def test_a_rate_that_is_no_positive_factor_is_refused(rates):
    with pytest.raises(ConfigError, match=r'lr_mult=.* is not a positive number'):
        rate_changes(Config.fromfile(ROOT / 'configs/ssd512_upgrade.py'), **rates)


@pytest.mark.parametrize('rates', [dict(lr_mult=0.1), dict(offset_lr_mult=10.0)])
def test_rates_of_several_optimizers_are_left_to_the_config(rates):
    wrapper = dict(constructor='Mine', generator=dict(optimizer=dict(type='Adam', lr=1e-3)))
    with pytest.raises(ConfigError, match=r'no optim_wrapper\.optimizer\.lr to multiply: leave lr_mult'):
        rate_changes(dict(optim_wrapper=wrapper), **rates)


@pytest.mark.parametrize('kind', ['SGD', 'Adagrad', 'Rprop', 'ASGD'])
@pytest.mark.parametrize('given', [dict(type='Adam', lr=0.01), dict(lr_mult=0.1)])
def test_a_base_whose_state_begins_with_it_steps(kind, given):
    """Adagrad has its state, of the offsets, too, before its first step."""
    network = Network()
    wrapper = dict(ADAM, type='OptimWrapper', optimizer=dict(type=kind, lr=0.01), offset_optimizer=given)
    optimizer = build_optim_wrapper(network, Config(dict(wrapper=wrapper)).wrapper)
    before = copy.deepcopy(network.state_dict())
    optimizer.update_params(network.backbone.stages[1][0](torch.ones(1, 4, 4, 4)).square().sum())
    after = network.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {'backbone.stages.1.0.weight', 'backbone.stages.1.0.conv_offset.bias'} <= moved
