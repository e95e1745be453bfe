"""Offsets alone are trained: what stays, what is kept for the backward pass, what is refused."""

import copy
import pickle

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from torch import nn

from mmdeform_upgrade import train_offsets_, upgrade_
from mmdeform_upgrade.errors import TargetError

from .networks import PICTURES, network, trained_offsets


def test_everything_but_the_offsets_stays_to_the_bit():
    before = network()
    after = trained_offsets(before, 'last:2').state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.state_dict().items())
    moved = set(after) - set(before.state_dict())
    assert moved == {f'{n}.conv_offset.{p}' for n in (3, 7) for p in ('weight', 'bias')}
    assert all(after[key].any() for key in moved)


def test_statistics_stay_in_evaluation_mode_and_dropout_follows_train():
    model = network()
    upgrade_(model, 'last:2')
    train_offsets_(model)
    model.train()
    modes = {type(m).__name__: m.training for m in model.modules()}
    assert not modes['BatchNorm2d'] and modes['Dropout'] and modes['ZeroOffsetDCN']
    assert not any(m.training for m in model.eval().modules())
    clone = copy.deepcopy(model).train()
    assert not clone[1].training and clone.training and not model.training


def test_a_pickled_network_still_trains_its_offsets_alone():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    upgrade_(model, 'last:1')
    train_offsets_(model)
    again = pickle.loads(pickle.dumps(model)).train()
    assert again.training and not again[0].training and not again[1].weight.requires_grad


def test_no_graph_is_built_before_the_first_upgraded_layer():
    model = network()
    upgrade_(model, 'last:1')
    train_offsets_(model)
    seen = []
    for module in model:
        module.register_forward_hook(lambda m, args, output: seen.append(output.requires_grad))
    model(PICTURES)
    assert seen == [False] * 7 + [True] * 3


def test_an_upgraded_layer_keeps_its_input_and_its_offsets_alone():
    layer = network()[3]
    model = nn.Sequential(layer)
    upgrade_(model, ['0'])
    train_offsets_(model)
    owned = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}
    pictures = torch.randn(2, 8, 16, 16)
    nn.init.normal_(model[0].conv_offset.bias)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        model(pictures).sum().backward()
    shapes = sorted(tuple(tensor.shape) for pointer, tensor in kept.items() if pointer not in owned)
    assert shapes == [(2, 8, 16, 16), (2, 18, 16, 16)]


@pytest.mark.parametrize('converted', [False, True])
def test_a_batch_norm_behind_it_computes_the_same_and_keeps_no_input(converted):
    norm = nn.SyncBatchNorm(8) if converted else nn.BatchNorm2d(8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(inplace=True))
    nn.init.uniform_(model[1].weight, 0.5, 1.5)
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    upgrade_(model, ['0'])
    model.double()
    nn.init.normal_(model[0].conv_offset.bias)
    plain = copy.deepcopy(model).eval()
    train_offsets_(model.train())
    if converted:  # as MMEngine's runner does where there is one process
        model = revert_sync_batchnorm(model).double().train()
    kept, results = [], []
    for net in (plain, copy.deepcopy(model)):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
            output = net(PICTURES.double())
        output.square().mean().backward()
        results.append((output, net[0].conv_offset.bias.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-12) and results[0][1].any()
    assert kept.count((2, 8, 14, 14)) == 3, "ReLU's output of both, and the input of PyTorch's batch norm"


@pytest.mark.parametrize('frozen', [False, True])
def test_a_network_whose_offsets_cannot_train_is_refused_untouched(frozen):
    model = network()
    if frozen:
        upgrade_(model, 'last:1')
        model.requires_grad_(False)
        model[1].weight.requires_grad_(True)
    with pytest.raises(TargetError, match='those of 7 are frozen' if frozen else 'it has no ZeroOffsetDCN'):
        train_offsets_(model)
    assert model[1].weight.requires_grad and model.train()[1].training
