"""bfloat16 arithmetic on a CPU, where MMEngine's own mixed precision refuses to train."""

import math

import pytest
import torch

from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.layers import ZeroOffsetDCN

from .conftest import build_runner, offsets, train

HOOK = dict(type='BFloat16Hook')


def _seen(model, picture):
    """dtypes that the upgraded layers are given, and what backbone and neck return."""
    dtypes = []
    handles = [
        module.register_forward_hook(lambda _, args, out: dtypes.append(out.dtype))
        for module in model.modules()
        if isinstance(module, ZeroOffsetDCN)
    ]
    with torch.no_grad():
        outs = model.neck(model.backbone(picture))
    for handle in handles:
        handle.remove()
    return set(dtypes), outs


def test_parts_compute_in_bfloat16_and_the_rest_sees_float32(short_cfg):
    runner = train(short_cfg, [HOOK])
    assert len(runner.record.losses) == 2 and all(math.isfinite(loss) for loss in runner.record.losses)
    assert all(grad.dtype == torch.float32 and grad.abs().sum() > 0 for grad in offsets(runner.record.grads).values())
    dtypes, outs = _seen(runner.model.eval(), torch.randn(1, 3, 96, 96))
    assert dtypes == {torch.bfloat16} and {out.dtype for out in outs} == {torch.float32}
    assert all(out.is_contiguous() for out in outs), "mmcv's RoIAlign reads other maps wrong on CPUs"
    full = build_runner(short_cfg).model
    full.load_state_dict(runner.model.state_dict())
    expected = _seen(full.eval(), torch.zeros(1, 3, 96, 96))
    assert expected[0] == {torch.float32}
    for half, exact in zip(_seen(runner.model, torch.zeros(1, 3, 96, 96))[1], expected[1], strict=True):
        assert 0 < (half - exact).abs().max() < 0.05 * exact.abs().max()


def test_without_a_list_of_parts_it_takes_those_that_the_network_has(segmentor_cfg):
    runner = train(segmentor_cfg, [HOOK])
    changed = {name for name, module in runner.model.named_modules() if 'forward' in vars(module)}
    assert changed == {'backbone', 'decode_head'}


def test_an_average_of_the_weights_computes_with_its_own(short_cfg):
    runner = train(short_cfg, [HOOK, dict(type='EMAHook', momentum=0.5)])
    average = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook').ema_model.module
    picture = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        before = average.backbone(picture)[-1]
        runner.model.backbone.conv1.weight.zero_()
        assert torch.equal(average.backbone(picture)[-1], before) and before.abs().sum() > 0


def test_a_part_that_the_network_lacks_is_named(short_cfg):
    with pytest.raises(ConfigError, match=r'has no decode_head; it has .*backbone, neck, bbox_head: set parts'):
        train(short_cfg, [dict(type='BFloat16Hook', parts=['backbone', 'decode_head'])])
