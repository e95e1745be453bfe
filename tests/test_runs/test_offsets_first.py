"""A fine-tune that trains the offsets alone first."""

import pytest
import torch

from mmdeform_upgrade import load_baseline
from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.mm.offsets_first import OffsetsFirstHook

from .conftest import build_runner, offsets, train


def _moved(runner):
    """Weights that are no longer those of the checkpoint that the run started from."""
    before, after = load_baseline(runner.cfg.load_from), runner.model.state_dict()
    return {
        name
        for name in before
        if not torch.equal(before[name], after[name]) and 'running' not in name and 'num_batches' not in name
    }


def test_first_the_offsets_alone_then_everything(short_cfg):
    first = train(short_cfg, [dict(type='OffsetsFirstHook', iterations=2)])
    assert set(first.record.grads) == set(offsets(first.record.grads))
    assert not _moved(first) and all(value.abs().sum() > 0 for value in offsets(first.model.state_dict()).values())
    both = train(short_cfg, [dict(type='OffsetsFirstHook', iterations=1)])
    frozen = {name for name, p in build_runner(short_cfg).model.named_parameters() if not p.requires_grad}
    assert _moved(both) and not _moved(both) & frozen
    assert all(p.requires_grad for name, p in both.model.named_parameters() if name not in frozen)


def test_a_network_without_offsets_is_refused(short_cfg):
    backbone = short_cfg.model.backbone
    backbone.type = backbone.pop('base_type')
    del backbone['targets']
    short_cfg.custom_hooks, short_cfg.load_from = [], None
    with pytest.raises(ConfigError, match='no upgraded layer whose offsets could be trained; take it out of custom_'):
        train(short_cfg, [dict(type='OffsetsFirstHook', iterations=1)])


@pytest.mark.parametrize('iterations', [0, -1, 1.5, True, None])
def test_a_number_of_iterations_that_makes_no_sense_is_refused(iterations):
    with pytest.raises(ConfigError, match='expected a positive whole number'):
        OffsetsFirstHook(iterations)
