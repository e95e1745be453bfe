"""What a plan says of the rates is read from the optimizer that MMEngine builds, under its schedulers."""

import re

import pytest
from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS

from mmdeform_upgrade import shorten_schedule
from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.mm.rates import describe_rates

from .optimizers import ADAM, LR, Network, groups


def test_a_plan_tells_the_rates_of_the_built_optimizer():
    cfg = dict(
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.3), **ADAM),
        param_scheduler=[dict(type='OneCycleLR', eta_max=0.5, total_steps=8, convert_to_iter_based=True)],
        train_cfg=dict(max_epochs=8),
    )
    said = describe_rates(Network(), Config(cfg))
    assert said.startswith('SGD lr 0.5, at the end 2e-06') and '; offsets: Adam lr 0.002, at the end 8e-09' in said
    cfg['optim_wrapper'] = dict(optimizer=dict(type='SGD', lr=0.3))
    assert 'offsets: SGD lr 0.5' in describe_rates(Network(), Config(cfg))


WARM_UP = dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=2000)


@pytest.mark.parametrize(
    'schedulers,last',
    [
        ([WARM_UP, dict(type='MultiStepLR', milestones=[8, 11], end=12)], 0.001),
        ([WARM_UP, dict(type='PolyLR', by_epoch=False, begin=2000, end=50000, power=0.9, eta_min=1e-4)], 0.0001),
        ([dict(type='CosineAnnealingLR', by_epoch=False, end=50000, T_max=50000, eta_min=0.002)], 0.002),
        ([WARM_UP, dict(type='MultiStepLR', by_epoch=False, end=50000, milestones=[30000, 40000])], 0.001),
        ([WARM_UP, dict(type='CosineAnnealingLR', by_epoch=False, begin=2000, T_max=48000, eta_min=0.002)], 0.002),
    ],
)
@pytest.mark.parametrize('shorter', [dict(epoch_ratio=1.0), dict(epoch_ratio=0.5), dict(max_iters=400)])
def test_schedules_by_iterations_of_a_training_by_epochs_keep_their_shape(schedulers, last, shorter):
    cfg = Config(
        dict(
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            train_cfg=dict(max_epochs=12),
            param_scheduler=schedulers,
        )
    )
    said = describe_rates(Network(), shorten_schedule(cfg, **shorter))
    rates = [float(rate) for rate in re.match('SGD lr (.*), at the end (.*); offsets', said).groups()]
    assert rates == pytest.approx([0.1, last], rel=0.02)


@pytest.mark.parametrize(
    'wrapper,message',
    [
        (dict(optimizer=dict(type='SGDD', lr=0.1)), "optim_wrapper.optimizer.type='SGDD' is no registered optimizer"),
        (dict(optimizer=dict(type='SGD', lr=0.1, mometum=1)), 'cannot be built: .*mometum'),
        (dict(ADAM, optimizer=LR, offset_optimizer=dict(type='Conv2d')), 'cannot be built: .*Conv2d is not in'),
        (
            dict(ADAM, optimizer=LR, offset_optimizer=dict(type='Adam', lr=0)),
            'rate of the offsets is 0, expected a posi',
        ),
        (
            dict(ADAM, optimizer=LR, offset_optimizer=dict(lr_mult=-1)),
            'the offsets is -0.01, expected a posi|Invalid lea',
        ),
        ({}, 'no optim_wrapper.optimizer'),
    ],
)
def test_what_is_no_optimizer_is_refused(wrapper, message):
    with pytest.raises(Exception, match=f'(?s){message}') as error:
        describe_rates(Network(), Config(dict(optim_wrapper=wrapper, train_cfg=dict(max_epochs=1))))
    assert type(error.value).__module__ == 'mmdeform_upgrade.errors'


def test_a_constructor_of_another_framework_gets_what_mmengine_would_give_it():
    class Constructor:  # as mmyolo's YOLOv5OptimizerConstructor
        def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
            if paramwise_cfg is None:
                paramwise_cfg = {'base_total_batch_size': 64}
            assert 'base_total_batch_size' in paramwise_cfg
            self.settings = optim_wrapper_cfg

        def __call__(self, model):
            settings = dict(self.settings.pop('optimizer'), params=list(model.parameters()))
            return OPTIM_WRAPPERS.build(self.settings, default_args=dict(optimizer=OPTIMIZERS.build(settings)))

    network = Network()
    built = groups(dict(ADAM, base_constructor=Constructor, optimizer=LR), network)
    assert set(built) == {name for name, _ in network.named_parameters()}
    assert {name for name, group in built.items() if group.get('offsets')} == {
        name for name in built if 'conv_offset' in name
    }
    plain = Config(dict(optim_wrapper=dict(constructor=Constructor, optimizer=LR), train_cfg=dict(max_epochs=4)))
    assert describe_rates(network, plain).startswith('SGD')


def test_the_plan_says_what_else_changes_the_rates():
    hook = dict(type='YOLOv5ParamSchedulerHook', max_epochs=4)
    cfg = Config(dict(optim_wrapper=dict(ADAM, optimizer=LR), train_cfg=dict(max_epochs=4)))
    assert 'changes these rates' not in describe_rates(Network(), cfg)
    cfg.default_hooks = dict(param_scheduler=hook)
    assert describe_rates(Network(), cfg).endswith('; YOLOv5ParamSchedulerHook changes these rates during training')
    cfg.auto_scale_lr = dict(enable=True, base_batch_size=16)
    assert describe_rates(Network(), cfg).endswith('; auto_scale_lr multiplies these by the pictures of a step / 16')


@pytest.mark.parametrize(
    'rules',
    [dict(dcn_offset_lr_mult=0.1), dict(custom_keys={'conv_offset': dict(lr_mult=0.1), 'body': dict(lr_mult=1)})],
)
def test_rules_that_the_offsets_do_not_follow_are_named(rules, monkeypatch):
    logged = []
    monkeypatch.setattr('mmdeform_upgrade.mm.offset_optimizer.print_log', lambda text, **kwargs: logged.append(text))
    wrapper = dict(ADAM, optimizer=LR, paramwise_cfg=rules)
    said = describe_rates(Network(), Config(dict(optim_wrapper=wrapper, train_cfg=dict(max_epochs=4))))
    name = next(iter(rules)) + '.conv_offset' * ('custom_keys' in rules)
    assert said.endswith(f'; paramwise_cfg.{name} does not change the rate of the offsets, offset_optimizer.lr does')
    assert len(logged) == 1 and f'paramwise_cfg.{name} does not change the rate of the offsets' in logged[0]
    same = dict(wrapper, offset_optimizer=dict())
    assert 'does not change' not in describe_rates(
        Network(), Config(dict(optim_wrapper=same, train_cfg=dict(max_epochs=4)))
    )


def test_a_decay_by_layers_is_not_lost_without_a_word():
    wrapper = dict(ADAM, optimizer=LR, paramwise_cfg=dict(decay_rate=0.5, decay_type='layer_wise', num_layers=12))
    with pytest.raises(ConfigError, match='has decay_rate, num_layers.*and no base_constructor: name the constructor'):
        describe_rates(Network(), Config(dict(optim_wrapper=wrapper, train_cfg=dict(max_epochs=4))))


def test_a_schedule_by_iterations_of_a_small_data_set_can_be_read():
    """40 epochs of 4 iterations, fewer than a plan takes an epoch to have."""
    one_cycle = dict(type='OneCycleLR', eta_max=0.5, total_steps=160, by_epoch=False)
    optimizer = dict(optimizer=dict(type='SGD', lr=0.1))
    cfg = Config(dict(optim_wrapper=optimizer, train_cfg=dict(max_epochs=40), param_scheduler=[one_cycle]))
    assert describe_rates(Network(), shorten_schedule(cfg)).startswith('SGD lr 0.5, at the end 2e-06')
