"""Mixed precision, gradient accumulation and clipping, rates of their own for the offsets, scaled rates."""

import contextlib
import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import autocast

from mmdeform_upgrade.errors import ConfigError, TargetError
from mmdeform_upgrade.layers import upgraded_layers
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.offsets.optimizer import OFFSET_LR
from mmdeform_upgrade.ops import sampling

from .conftest import build_runner, offsets, train


@OPTIM_WRAPPERS.register_module()
class HalfOnCPU(OptimWrapper):
    """MMEngine's own ``AmpOptimWrapper`` refuses a CPU, and its ``autocast`` refuses float16 there."""

    @contextlib.contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', torch.float16):
            yield


@pytest.mark.parametrize(
    'wrapper', [dict(type='HalfOnCPU'), dict(type='AmpOptimWrapper', dtype='bfloat16')], ids=['float16', 'bfloat16']
)
def test_mixed_precision_trains_offsets_and_samples_at_full_precision(short_cfg, wrapper, monkeypatch):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    plans, make_plan = [], sampling.make_plan
    monkeypatch.setattr(
        sampling, 'make_plan', lambda *args: plans.append((args[0].dtype, make_plan(*args))) or plans[-1][1]
    )
    runner = train(short_cfg, optim_wrapper=wrapper)
    assert type(runner.optim_wrapper).__name__ == wrapper['type']
    assert len(runner.record.losses) == 2 and all(math.isfinite(loss) for loss in runner.record.losses)
    assert all(grad.dtype == torch.float32 and grad.abs().sum() > 0 for grad in offsets(runner.record.grads).values())
    assert all(
        value.dtype == torch.float32 and value.abs().sum() > 0 for value in offsets(runner.model.state_dict()).values()
    )
    assert plans and {offset for offset, _ in plans} <= {torch.float16, torch.bfloat16}, 'autocast was on'
    assert all(plan.interp.dtype == torch.float32 for _, plan in plans)


def test_validation_under_autocast_scores_like_full_precision(segmentor_cfg):
    """Of the segmentor, since mmcv's nms knows no bfloat16 on a CPU."""
    segmentor_cfg.update(val_dataloader=segmentor_cfg.train_dataloader, val_evaluator=dict(type='IoUMetric'))
    runners = [build_runner(segmentor_cfg, val_cfg=dict(type='ValLoop', fp16=fp16)) for fp16 in (False, True)]
    scores = [runner.val()['aAcc'] for runner in runners]
    assert runners[1].val_loop.fp16 and scores[0] > 1
    assert scores[1] == pytest.approx(scores[0], abs=2)


def test_half_precision_outputs_are_near_those_of_full_precision(segmentor_cfg):
    model = build_runner(segmentor_cfg).model.eval()
    for parameter in offsets(dict(model.named_parameters())).values():
        torch.nn.init.normal_(parameter, std=0.02)
    picture = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        full = model(picture)
        with autocast(dtype=torch.bfloat16):
            half = model(picture)
    assert half.dtype == torch.bfloat16
    assert (half - full).abs().max() < 0.05 * full.abs().max()


def test_accumulated_gradients_are_those_of_the_larger_batch(segmentor_cfg):
    """Four steps of two pictures, two by two, against two steps of four."""
    segmentor_cfg.model.backbone.norm_eval = True
    states = []
    for changes in ({'train_dataloader.batch_size': 4}, {'optim_wrapper.accumulative_counts': 2}):
        states.append(train(segmentor_cfg, **changes).model.state_dict())
    start = torch.load(segmentor_cfg.load_from, weights_only=True)['state_dict']
    for key in start:
        if 'num_batches' not in key and 'running' not in key:
            assert (states[0][key] - start[key]).abs().max() > 1e-6 or 'conv_seg' not in key
            torch.testing.assert_close(states[1][key], states[0][key], rtol=1e-4, atol=1e-6)
    for key, value in offsets(states[0]).items():
        assert value.abs().max() > 0
        assert (states[1][key] - value).abs().max() < 1e-3 * value.abs().max(), key


def test_clipping_bounds_the_gradient_and_counts_the_offsets(short_cfg):
    runner = train(short_cfg, **{'optim_wrapper.clip_grad': dict(max_norm=0.1)})
    norm = torch.stack([grad.norm() for grad in runner.record.grads.values()]).norm()
    assert float(norm) == pytest.approx(0.1, rel=1e-3)
    assert len(offsets(runner.record.grads)) == 6


def test_the_offsets_own_rate_and_decay_reach_the_optimizer_and_the_step(short_cfg):
    rate = short_cfg.optim_wrapper.optimizer.lr
    keys = {'conv_offset': dict(lr_mult=0.1, decay_mult=0.0), 'backbone': dict(lr_mult=0.5)}
    short_cfg.optim_wrapper.optimizer.weight_decay = 0.1
    short_cfg.train_dataloader.batch_size = 8  # one step
    short_cfg.optim_wrapper.paramwise_cfg = dict(custom_keys=keys)
    runner = train(short_cfg)
    groups = {id(p): group for group in runner.optim_wrapper.optimizer.param_groups for p in group['params']}
    for name, parameter in runner.model.named_parameters():
        group, own = groups[id(parameter)], 'conv_offset' in name
        expected = 0.1 if own else 0.5 if name.startswith('backbone') else 1
        assert group['lr'] == pytest.approx(rate * expected), name
        assert group['weight_decay'] == (0 if own else 0.1), name
    for name, value in offsets(runner.model.state_dict()).items():  # one step of SGD from zero
        torch.testing.assert_close(value, -rate * 0.1 * runner.record.grads[name])


def test_a_rate_that_would_not_reach_the_offsets_is_refused_before_the_first_step(short_cfg):
    short_cfg.optim_wrapper.paramwise_cfg = dict(dcn_offset_lr_mult=0.1)
    with pytest.raises(ConfigError, match=r"DefaultOptimWrapperConstructor gives .*dcn_offset_lr_mult to mmcv's own"):
        train(short_cfg)


def test_targets_in_frozen_stages_are_refused_by_name_before_the_run_starts(short_cfg):
    short_cfg.model.backbone.update(frozen_stages=4)
    with pytest.raises(TargetError, match=r'(?s)frozen_stages=4.*layer4\.1\.conv2: its weight is frozen') as error:
        build_runner(short_cfg)
    assert 'layer4.0.conv2' in str(error.value)


def test_frozen_stages_stay_as_they_were_while_the_others_are_upgraded(short_cfg):
    short_cfg.model.backbone.update(frozen_stages=3, targets='last:4', exclude=r'layer4\.1\.conv2')
    short_cfg.model.backbone.targets = r'layer4\.[01]\.conv[12]'
    runner = train(short_cfg)
    start = torch.load(short_cfg.load_from, weights_only=False)['state_dict']
    state = runner.model.state_dict()
    assert {name.split('.conv_offset')[0] for name in offsets(state)} == {
        f'backbone.layer4.{name}' for name in ('0.conv1', '0.conv2', '1.conv1')
    }
    assert all(value.abs().sum() > 0 for value in offsets(state).values())
    assert torch.equal(state['backbone.layer3.1.conv2.weight'], start['backbone.layer3.1.conv2.weight'])
    assert not torch.equal(state['backbone.layer4.1.conv2.weight'], start['backbone.layer4.1.conv2.weight'])


def test_auto_scale_lr_scales_the_upgrades_rate_by_the_pictures_in_a_step(short_cfg, tiny_upgrade):
    rate = Config.fromfile(tiny_upgrade).optim_wrapper.optimizer.lr
    short_cfg.optim_wrapper = Config.fromfile(tiny_upgrade).optim_wrapper  # as tools/upgrade.py wrote it
    with pytest.raises(ConfigError, match='--auto-scale-lr needs auto_scale_lr'):
        command_line.set_auto_scale_lr(short_cfg)
    short_cfg.auto_scale_lr = dict(base_batch_size=16)
    command_line.set_auto_scale_lr(short_cfg)
    runner = train(short_cfg, custom_hooks=[dict(type='DeformUpgradeHook', max_step=math.inf)])
    found = [group['lr'] for group in runner.optim_wrapper.optimizer.param_groups]
    assert found == pytest.approx([rate * 4 / 16, *[OFFSET_LR * 4 / 16] * 3])


APART = dict(
    type='OptimWrapper',
    constructor='OffsetOptimizerConstructor',
    optimizer=dict(type='SGD', lr=0.01),
    offset_optimizer=dict(type='Adam', lr=OFFSET_LR),
)


def test_rates_that_move_offsets_too_far_are_lowered_layer_by_layer_and_resumed_so(short_cfg):
    limited = dict(custom_hooks=[dict(type='DeformUpgradeHook', max_step=1e-3), dict(type='RunGuardHook')])
    first = train(short_cfg, optim_wrapper=APART, log_level='INFO', **limited)
    rates = [group['offset_lr'] for group in first.optim_wrapper.optimizer.param_groups if group.get('offsets')]
    assert len(set(rates)) == len(rates) == 3 and max(rates) < OFFSET_LR
    log = Path(next(Path(first.work_dir).glob('*/*.log'))).read_text(encoding='utf8')
    said = re.findall(r'(\S+): one step of Adam moves its offsets by (\S+) pixels, expected at most 0.001 ', log)
    assert [name for name, _ in said] == list(upgraded_layers(first.model))
    assert [OFFSET_LR * 1e-3 / float(step) for _, step in said] == pytest.approx(rates, rel=0.05)
    path = f'{first.work_dir}/epoch_1.pth'
    resume = {'train_cfg.max_epochs': 2, 'resume': True, 'load_from': path}
    second = train(short_cfg, optim_wrapper=APART, **limited, **resume)
    groups = second.optim_wrapper.optimizer.param_groups
    assert [group['offset_lr'] for group in groups if group.get('offsets')] == rates


def test_without_a_limit_the_rates_are_the_configs(short_cfg):
    runner = train(short_cfg, optim_wrapper=APART, custom_hooks=[dict(type='DeformUpgradeHook', max_step=math.inf)])
    groups = runner.optim_wrapper.optimizer.param_groups
    assert [group['offset_lr'] for group in groups if group.get('offsets')] == [OFFSET_LR] * 3
