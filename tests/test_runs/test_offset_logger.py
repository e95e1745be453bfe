"""What the offset logger writes, warns of and stops, in MMEngine's real runner."""

import json
import logging
import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper

from mmdeform_upgrade.errors import ConfigError, TrainingError
from mmdeform_upgrade.layers import upgraded_layers
from mmdeform_upgrade.mm.offset_logger import OffsetLoggerHook

from .conftest import build_runner, train

LAYERS = [f'backbone.layer4.{name}' for name in ('0.conv2', '1.conv1', '1.conv2')]


@pytest.fixture(autouse=True)
def _own_visualizer(short_cfg, tmp_path):
    """MMEngine keeps one visualizer a name in a process."""
    short_cfg.visualizer = dict(type='Visualizer', name=str(tmp_path), vis_backends=[dict(type='LocalVisBackend')])


@pytest.fixture
def warnings(monkeypatch):
    """Warnings of the run; MMEngine's loggers do not propagate."""
    found = []
    handle = logging.Logger.handle
    monkeypatch.setattr(
        logging.Logger,
        'handle',
        lambda self, record: (
            found.append(record.getMessage()) if record.levelno >= logging.WARNING else None,
            handle(self, record),
        )[-1],
    )
    return found


def scalars(runner):
    path = next(Path(runner.work_dir).glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_offsets_are_logged_at_the_interval_and_beside_the_losses(short_cfg, warnings):
    runner = train(
        short_cfg,
        [dict(type='OffsetLoggerHook', interval=2), dict(type='EMAHook')],
        **{'train_cfg.max_epochs': 2, 'optim_wrapper.accumulative_counts': 2},
    )
    records = [record for record in scalars(runner) if any(key.startswith('offsets/') for key in record)]
    assert [record['step'] for record in records] == [2, 4]
    assert {key for key in records[0] if key != 'step'} == {
        f'offsets/{layer}/{number}' for layer in LAYERS for number in ('mean', 'percentile95', 'outside')
    }
    assert all(records[0][f'offsets/{layer}/mean'] == 0 for layer in LAYERS), 'before the first accumulated step'
    assert all(
        records[1][f'offsets/{layer}/percentile95'] >= records[1][f'offsets/{layer}/mean'] > 0 for layer in LAYERS
    )
    assert sum('loss' in record for record in scalars(runner)) == 4, "LoggerHook's records are complete"
    assert not [text for text in warnings if 'ffsets of' in text]
    assert not any(layer.conv_offset._forward_hooks for layer in upgraded_layers(runner.model).values())


def test_logging_changes_nothing_in_the_training(short_cfg):
    states = [train(short_cfg, hooks).model.state_dict() for hooks in ([], [dict(type='OffsetLoggerHook', interval=1)])]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_exploding_offsets_are_named_once_with_what_to_do(short_cfg, warnings):
    train(
        short_cfg,
        [dict(type='Spoil', layer=LAYERS[1], value=300.0), dict(type='OffsetLoggerHook', interval=1)],
        **{'train_cfg.max_epochs': 2},
    )
    found = [text for text in warnings if 'explode' in text]
    assert len(found) == 1 and f'offsets of {LAYERS[1]} explode: mean 42' in found[0]
    assert 'lr_mult=0.1' in found[0] and '100 % of its taps outside the map' in found[0]


@pytest.mark.parametrize(
    'cause,message',
    [
        ('frozen', r'they are frozen \(requires_grad=False\)'),
        ('rate', "their learning rate is 0; look for 'conv_offset'"),
        ('forgotten', 'the optimizer does not hold them'),
        ('none', None),
    ],
)
def test_offsets_that_never_move_are_explained(short_cfg, warnings, cause, message):
    changes = {}
    if cause == 'rate':
        changes = {'optim_wrapper.paramwise_cfg': dict(custom_keys={'layer4.1.conv1.conv_offset': dict(lr_mult=0.0)})}
    runner = build_runner(short_cfg, [dict(type='OffsetLoggerHook', patience=2)], **changes)
    branch = list(upgraded_layers(runner.model)[LAYERS[1]].conv_offset.parameters())
    if cause == 'frozen':
        for parameter in branch:
            parameter.requires_grad_(False)
    if cause == 'forgotten':
        others = [p for p in runner.model.parameters() if not any(p is own for own in branch)]
        runner.optim_wrapper = OptimWrapper(torch.optim.SGD(others, 0.01))
    runner.train()
    found = [text for text in warnings if 'have not moved' in text]
    if message is None:
        assert found == []
    else:
        assert len(found) == 1
        assert re.search(f'Offsets of {LAYERS[1]} have not moved in 2 iterations: {message}', found[0])


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_offsets_that_are_no_numbers_stop_the_run_and_name_the_first_layer(short_cfg, value):
    hooks = [dict(type='Spoil', layer=LAYERS[1], value=value, iteration=2), dict(type='OffsetLoggerHook', interval=1)]
    runner = build_runner(short_cfg, hooks, **{'train_cfg.max_epochs': 2})
    with pytest.raises(TrainingError, match=f'iteration 3: offsets of {LAYERS[1]} are not finite.*epoch_1.pth'):
        runner.train()
    assert (Path(runner.work_dir) / 'epoch_1.pth').is_file() and not (Path(runner.work_dir) / 'epoch_2.pth').exists()
    assert not any(layer.conv_offset._forward_hooks for layer in upgraded_layers(runner.model).values())


def test_weights_that_are_not_finite_stop_the_run_between_records(short_cfg):
    hooks = [
        dict(type='Spoil', layer=LAYERS[2], value=math.nan, iteration=1, parameter='weight'),
        dict(type='OffsetLoggerHook', interval=50),
    ]
    message = f'iteration 2: weights are not finite: of the upgraded layers .*{LAYERS[2]}.*OffsetLoggerHook.interval=1'
    with pytest.raises(TrainingError, match=message):
        train(short_cfg, hooks)


def test_a_loss_that_overflows_in_a_step_that_is_left_out_stops_nothing(short_cfg):
    runner = build_runner(short_cfg, [dict(type='OffsetLoggerHook', interval=50)])
    hook = next(hook for hook in runner.hooks if isinstance(hook, OffsetLoggerHook))
    hook.after_train_iter(runner, 0, outputs=dict(loss=torch.tensor(math.inf)))


def test_the_log_works_in_mixed_precision(short_cfg, monkeypatch):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    runner = train(
        short_cfg,
        [dict(type='OffsetLoggerHook', interval=2)],
        optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16'),
    )
    assert any(record.get(f'offsets/{LAYERS[0]}/mean', 0) > 0 for record in scalars(runner))


def test_a_wrapped_network_is_logged_under_its_own_names(short_cfg, tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        runner = build_runner(short_cfg, [dict(type='OffsetLoggerHook', interval=2)])
        runner.model = MMDistributedDataParallel(runner.model)
        runner.train()
    finally:
        torch.distributed.destroy_process_group()
    assert any(f'offsets/{LAYERS[0]}/mean' in record for record in scalars(runner))


@pytest.mark.parametrize('setting', ['interval', 'warn_above', 'patience'])
def test_settings_that_make_no_sense_are_refused(setting):
    with pytest.raises(ConfigError, match=f'{setting} is 0; expected a number above 0'):
        OffsetLoggerHook(**{setting: 0})


def test_a_network_without_offsets_is_refused(short_cfg):
    runner = build_runner(short_cfg, [dict(type='OffsetLoggerHook')])
    runner.model = torch.nn.Conv2d(3, 3, 3)
    hook = next(hook for hook in runner.hooks if isinstance(hook, OffsetLoggerHook))
    with pytest.raises(ConfigError, match='no ZeroOffsetDCN, so there are no offsets to log'):
        hook.before_train(runner)


@pytest.mark.skipif(not hasattr(torch.compiler, 'set_stance'), reason='PyTorch 2.6')
def test_a_compiled_run_is_logged_as_a_plain_one(segmentor_cfg, tmp_path):
    torch._dynamo.reset()
    found = []
    for options in ({}, {'compile': dict(backend='eager')}):
        segmentor_cfg.visualizer = dict(
            type='Visualizer', name=f'{tmp_path}{options}', vis_backends=[dict(type='LocalVisBackend')]
        )
        segmentor_cfg.work_dir = str(tmp_path / f'{len(options)}')
        runner = train(segmentor_cfg, [dict(type='OffsetLoggerHook', interval=2)], **options)
        found.append([row for row in scalars(runner) if any('offsets/' in key for key in row)])
    assert len(found[0]) == 2
    assert [list(row) for row in found[1]] == [list(row) for row in found[0]]
    for plain, compiled in zip(*found, strict=True):
        assert list(compiled.values()) == pytest.approx(list(plain.values()), rel=1e-3)
