"""Checkpointed activations, folded batch norms and compiled steps compute what the plain network computes."""

import copy

import pytest
import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from torch._dynamo.utils import counters

from mmdeform_upgrade.layers import upgraded_layers
from mmdeform_upgrade.ops.autograd import run_uncompiled

from ..conftest import relative_error
from .conftest import build_runner, offsets, train


def _with_offsets(model):
    """Offsets of about a pixel and batch norms that do something: what a trained upgrade has."""
    for parameter in offsets(dict(model.named_parameters())).values():
        torch.nn.init.normal_(parameter, std=0.05)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture
def trained_segmentor(segmentor_cfg):
    return _with_offsets(build_runner(segmentor_cfg).model).double()


def _results(model, picture):
    """Output, and the gradients of every parameter."""
    model.zero_grad()
    output = model(picture)
    output.square().mean().backward()
    return output, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _assert_same_results(result, expected, tolerance):
    assert result[1].keys() == expected[1].keys()
    assert relative_error(result[0], expected[0]) <= tolerance
    for name, grad in result[1].items():
        assert grad.abs().sum() > 0 or expected[1][name].abs().sum() == 0, name
        assert relative_error(grad, expected[1][name]) <= tolerance, name


@pytest.mark.parametrize(
    'changes',
    [{'model.backbone.with_cp': True}, {'activation_checkpointing': ['backbone.layer4', 'backbone.layer3']}],
    ids=['with_cp', 'activation_checkpointing'],
)
def test_checkpointed_activations_change_nothing_in_a_run(short_cfg, changes):
    plain, checkpointed = train(short_cfg), train(short_cfg, **changes)
    assert checkpointed.record.losses == pytest.approx(plain.record.losses, rel=1e-5)
    grads, expected = checkpointed.record.grads, plain.record.grads
    assert grads.keys() == expected.keys()
    assert all(torch.equal(grad, expected[name]) and grad.any() for name, grad in offsets(grads).items())
    assert max(relative_error(grad, expected[name]) for name, grad in grads.items()) < 1e-5  # sums in another order


def test_batch_norms_folded_while_training_change_nothing(trained_segmentor):
    """``efficient_conv_bn_eval`` in training mode with ``norm_eval``: outputs and all gradients."""
    model, picture = trained_segmentor.train(), torch.randn(2, 3, 96, 96).double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    expected = _results(model, picture)
    assert len(offsets(expected[1])) == 6
    used = []
    for layer in upgraded_layers(model).values():
        layer._conv_forward = lambda *args, own=layer._conv_forward: used.append(1) or own(*args)
    turn_on_efficient_conv_bn_eval(model, ['backbone'])
    result = _results(model, picture)
    assert len(used) == 3, 'the deformable layers were folded, too'
    _assert_same_results(result, expected, 1e-10)


def test_batch_norms_folded_in_a_run_leave_its_losses(short_cfg):
    short_cfg.model.backbone.norm_eval = True
    plain, folded = train(short_cfg), train(short_cfg, efficient_conv_bn_eval=['backbone'])
    assert folded.record.losses == pytest.approx(plain.record.losses, rel=1e-4)
    for name, grad in offsets(folded.record.grads).items():
        assert relative_error(grad, plain.record.grads[name]) < 1e-3, name


def test_fused_batch_norms_leave_the_outputs(trained_segmentor):
    model, picture = trained_segmentor.eval(), torch.randn(2, 3, 96, 96).double()
    with torch.no_grad():
        expected = model(picture)
        fused = fuse_conv_bn(copy.deepcopy(model))
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.backbone.modules())
        assert len(upgraded_layers(fused)) == 3
        assert relative_error(fused(picture), expected) < 1e-10


def test_a_compiled_run_has_the_losses_of_the_plain_one(segmentor_cfg):
    torch._dynamo.reset()
    segmentor_cfg.train_dataloader.dataset.indices = 8
    fast = dict(constructor='OffsetOptimizerConstructor', offset_optimizer=dict(type='Adam', lr=1.0))
    segmentor_cfg.optim_wrapper.update(fast)  # too fast: it is lowered
    plain = train(segmentor_cfg)
    counters.clear()
    compiled = train(segmentor_cfg, compile=dict(backend='eager'))
    assert compiled.record.losses == pytest.approx(plain.record.losses, rel=1e-5)
    assert len(set(compiled.record.losses)) == 4 and counters['stats']['unique_graphs'] > 0
    rates = [
        [group['offset_lr'] for group in run.optim_wrapper.optimizer.param_groups if group.get('offsets')]
        for run in (plain, compiled)
    ]
    assert rates[1] == pytest.approx(rates[0], rel=1e-5) and max(rates[0]) < 0.9
    for name, value in offsets(compiled.model.state_dict()).items():
        assert value.abs().sum() > 0
        assert relative_error(value, plain.model.state_dict()[name]) < 1e-3, name


@pytest.mark.skipif(not hasattr(torch.compiler, 'set_stance'), reason='since PyTorch 2.6')
def test_the_compilers_own_stance_comes_back_when_nobody_has_to_run_uncompiled():
    torch._dynamo.reset()
    found = []
    with torch.compiler.set_stance('eager_on_recompile'):
        for on in (True, True, False, False):
            run_uncompiled(on)
            found.append(torch._dynamo.eval_frame._stance.stance)
    assert found == ['force_eager'] * 3 + ['eager_on_recompile']


def test_the_upgraded_layer_compiles_without_a_graph_break(trained_segmentor):
    torch._dynamo.reset()
    layer = next(iter(upgraded_layers(trained_segmentor).values()))
    picture = torch.randn(2, layer.in_channels, 9, 7).double()
    expected = _results(copy.deepcopy(layer), picture)
    output, grads = _results(torch.compile(layer, fullgraph=True, backend='aot_eager'), picture)
    _assert_same_results(
        (output, {name.removeprefix('_orig_mod.'): grad for name, grad in grads.items()}), expected, 1e-12
    )
