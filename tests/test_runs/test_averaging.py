"""EMA and the other averages of MMEngine beside an upgraded network."""

import pytest
import torch
from mmengine.hooks import EMAHook, Hook

from mmdeform_upgrade.readers import read_checkpoint

from .conftest import build_runner, offsets, train


class _See(Hook):
    """What network and average hold when training begins."""

    def __init__(self, states):
        self.states = states

    def before_train(self, runner):
        average = _ema(runner).ema_model
        self.states.update(source=_copy(runner.model), average=_copy(average.module), steps=average.steps.clone())


class _Steps(Hook):
    """The offsets after each step, and their average."""

    def __init__(self, values, means):
        self.values, self.means = values, means

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.values.append(_copy(runner.model))
        self.means.append(_copy(_ema(runner).ema_model.module))


def _ema(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, EMAHook))


def _copy(model):
    return {name: value.clone() for name, value in offsets(model.state_dict()).items()}


AVERAGES = [
    dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.3),
    dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.3, gamma=2),
    dict(type='EMAHook', ema_type='StochasticWeightAverage', update_buffers=True),
]


@pytest.fixture(params=AVERAGES, ids=lambda hook: hook['ema_type'])
def averaged(request, short_cfg):
    """A run of two steps with an average."""
    return request.param, short_cfg, train(short_cfg, [request.param])


def _average(hook, values):
    """The average of a parameter's values after each step, as the papers define it."""
    mean = values[0]  # MMEngine's first update copies
    for step, value in enumerate(values[1:], 1):
        if hook['ema_type'] == 'StochasticWeightAverage':
            weight = 1 / (step + 1)
        elif hook['ema_type'] == 'MomentumAnnealingEMA':
            weight = max(hook['momentum'], hook['gamma'] / (hook['gamma'] + step))
        else:
            weight = hook['momentum']
        mean = mean + (value - mean) * weight
    return mean


def test_the_average_of_offsets_is_saved_and_resumed(averaged):
    """A checkpoint's ``state_dict`` is the average, for deployment, and its ``ema_state_dict`` the source."""
    hook, cfg, runner = averaged
    source = offsets(runner.model.state_dict())
    checkpoint = read_checkpoint(f'{runner.work_dir}/epoch_1.pth')
    mean, kept = offsets(checkpoint['state_dict']), offsets(checkpoint['ema_state_dict'])
    for name, value in source.items():
        assert torch.equal(kept[f'module.{name}'], value)
        assert value.abs().sum() > 0 and mean[name].abs().sum() > 0
        assert not torch.equal(mean[name], value), 'the average lags behind'
    resumed = build_runner(
        cfg, [hook], resume=True, load_from=f'{runner.work_dir}/epoch_1.pth', **{'train_cfg.max_epochs': 2}
    )
    states = {}
    resumed.register_hook(_See(states), 'LOWEST')
    resumed.train()
    assert all(torch.equal(states['source'][name], value) for name, value in source.items())
    assert all(torch.equal(states['average'][name], value) for name, value in mean.items())
    assert int(states['steps']) == 2


def test_the_average_is_what_its_definition_says(averaged):
    hook, cfg, _ = averaged
    values, means = [], []
    runner = build_runner(cfg, [hook], **{'train_dataloader.dataset.indices': 16})
    runner.register_hook(_Steps(values, means), 'LOWEST')
    runner.train()
    assert len(values) == 4
    for name in values[0]:
        torch.testing.assert_close(means[-1][name], _average(hook, [value[name] for value in values]))


@pytest.mark.parametrize('kind', ['ExponentialMovingAverage', 'StochasticWeightAverage'])
def test_an_average_does_not_keep_the_step_that_was_too_long(short_cfg, kind):
    """It begins with a copy of the first step, which is measured in the second and then shortened."""
    adam = dict(constructor='OffsetOptimizerConstructor', offset_optimizer=dict(type='Adam', lr=0.002))
    hooks = [dict(type='EMAHook', ema_type=kind), dict(type='DeformUpgradeHook', max_step=1e-4)]
    values, means = [], []
    runner = build_runner(
        short_cfg, custom_hooks=hooks, **{f'optim_wrapper.{key}': value for key, value in adam.items()}
    )
    runner.register_hook(_Steps(values, means), 'LOWEST')
    runner.train()
    for name, value in values[1].items():
        assert value.abs().max() < values[0][name].abs().max() / 2, 'shortened'
        torch.testing.assert_close(means[1][name], value)


def test_validation_uses_the_average_and_gives_the_source_back(short_cfg):
    hook = dict(type='EMAHook', momentum=0.5)
    runner = build_runner(short_cfg, [hook])
    runner.train()
    source, mean = _copy(runner.model), _copy(_ema(runner).ema_model.module)
    _ema(runner).before_val_epoch(runner)
    assert all(torch.equal(value, mean[name]) for name, value in offsets(runner.model.state_dict()).items())
    _ema(runner).after_val_epoch(runner)
    assert all(torch.equal(value, source[name]) for name, value in offsets(runner.model.state_dict()).items())
    assert any(not torch.equal(source[name], mean[name]) for name in source)
