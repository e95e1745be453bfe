"""Weights that are not finite stop a run and are never saved; a baseline that holds them is named."""

import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS

from mmdeform_upgrade.errors import TrainingError
from mmdeform_upgrade.mm.guard import find_resumable
from mmdeform_upgrade.readers import read_checkpoint

from ..faults.tiny import TinyBackbone
from .tiny_runs import ended, run, scalars_log, train_tool

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


def test_a_checkpoint_by_iterations_names_its_own(tiny):
    tiny.default_hooks.checkpoint.update(by_epoch=False, interval=2)
    tiny.custom_hooks[1].finite_interval = 50
    with pytest.raises(TrainingError, match=r'iteration 10: weights are not finite.*iter_8.pth'):
        run(tiny, dict(type='SetWeights', name=f'{LAYER}.conv_offset.bias', value=math.nan))


def test_a_loss_that_is_not_finite_is_a_warning_while_the_weights_are(tiny):
    """As where the loss scale of mixed precision is too large, and the step is left out."""
    tiny.custom_hooks[1].finite_interval = 6
    runner = run(tiny, _BadLoss(times=1))
    assert re.search('WARNING - RunGuardHook: the loss of iteration 6 is not finite', scalars_log(runner))
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
