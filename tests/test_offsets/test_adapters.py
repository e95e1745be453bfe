"""Adapters in plain PyTorch: loaded on the baseline, switched, refused where they do not belong."""

import copy
import os

import pytest
import torch
from torch import nn

from mmdeform_upgrade import disable_adapter, load_adapter, revert_, set_adapter, upgrade_
from mmdeform_upgrade.errors import CheckpointError, UpgradeError
from mmdeform_upgrade.layers import upgraded_layers
from mmdeform_upgrade.readers import read_checkpoint
from mmdeform_upgrade.release import apply_delta, make_delta

from .networks import PICTURES, network, trained_offsets


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A baseline and two adapters of it: ``left`` of its last two convolutions, ``right`` of its last alone."""
    folder = tmp_path_factory.mktemp('adapters')
    baseline = network()
    torch.save({'state_dict': baseline.state_dict()}, folder / 'baseline.pth')
    for name, targets in (('left', 'last:2'), ('right', 'last:1')):
        upgraded = trained_offsets(baseline, targets)
        torch.save({'state_dict': upgraded.state_dict()}, folder / f'{name}.pth')
        make_delta(*(str(folder / file) for file in ('baseline.pth', f'{name}.pth', f'{name}.safetensors')))
    return folder


def upgraded(files, name):
    """The whole upgrade that an adapter was made of."""
    model = network()
    upgrade_(model, 'last:2' if name == 'left' else 'last:1')
    model.load_state_dict(torch.load(files / f'{name}.pth')['state_dict'])
    return model


def same_bits(model, other):
    with torch.no_grad():
        return torch.equal(model(PICTURES), other(PICTURES))


def with_its_adapter(baseline, upgraded, folder):
    """A copy of the baseline with the adapter that makes the upgraded network of it, by way of files."""
    for name, net in (('b', baseline), ('u', upgraded)):
        torch.save({'state_dict': net.state_dict()}, folder / f'{name}.pth')
    make_delta(*(str(folder / file) for file in ('b.pth', 'u.pth', 'adapter.safetensors')))
    switched = copy.deepcopy(baseline)
    load_adapter(switched, str(folder / 'adapter.safetensors'))
    return switched


def test_an_adapter_is_the_offset_branches_alone(files):
    for name, layers in (('left', (3, 7)), ('right', (7,))):
        contents = read_checkpoint(str(files / f'{name}.safetensors'))
        tensors, metadata = contents['state_dict'], contents['metadata']
        assert set(tensors) == {f'{n}.conv_offset.{p}' for n in layers for p in ('weight', 'bias')}
        assert metadata['baseline'] == 'baseline.pth'
    assert os.path.getsize(files / 'right.safetensors') < 8000


def test_adapters_are_switched_on_the_baseline(files):
    model, baseline = network(), network()
    assert load_adapter(model, str(files / 'left.safetensors')) == 'left'
    assert same_bits(model, upgraded(files, 'left')) and not same_bits(model, baseline)
    load_adapter(model, str(files / 'right.safetensors'), 'default')
    assert same_bits(model, upgraded(files, 'right')) and list(upgraded_layers(model)) == ['7']
    assert load_adapter(model, str(files / 'left.safetensors'), 'again') == 'again'
    set_adapter(model, 'left')
    with disable_adapter(model) as plain:
        assert plain is model and same_bits(model, baseline)
        assert list(model.state_dict()) == list(baseline.state_dict())
    assert same_bits(model, upgraded(files, 'left'))
    set_adapter(model, None)
    assert same_bits(model, baseline)


def test_an_upgrade_is_its_own_adapter_beside_the_loaded_ones(files):
    model = upgraded(files, 'left')
    with disable_adapter(model):
        assert same_bits(model, network())
    nn.init.ones_(model[7].conv_offset.bias)
    moved = copy.deepcopy(model)
    load_adapter(model, str(files / 'left.safetensors'))
    assert same_bits(model, upgraded(files, 'left')) and not same_bits(model, moved)
    set_adapter(model, 'default')
    assert same_bits(model, moved)


def test_copies_moves_and_conversions_of_the_model_keep_the_switch(files):
    model = network()
    load_adapter(model, str(files / 'left.safetensors'))
    set_adapter(model, None)
    clone = copy.deepcopy(model).double().train()
    set_adapter(clone, 'left')
    assert clone[3].training and clone[3].conv_offset.weight.dtype is torch.float64
    assert same_bits(model, network()) and not model[3].training
    reference = upgraded(files, 'left').double().eval()
    with torch.no_grad():
        assert torch.equal(clone.eval()(PICTURES.double()), reference(PICTURES.double()))


def test_weights_loaded_while_switched_off_count(files):
    model, other = network(), network(1)
    load_adapter(model, str(files / 'left.safetensors'))
    with disable_adapter(model):
        model.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(model[3].weight, other[3].weight)


def test_a_baseline_with_deformable_layers_of_its_own_keeps_them(tmp_path):
    baseline = trained_offsets(network(), 'last:1').requires_grad_(True)
    model = copy.deepcopy(baseline)
    upgrade_(model, ['3'])
    nn.init.normal_(model[3].conv_offset.bias)
    switched = with_its_adapter(baseline, model, tmp_path)
    assert same_bits(switched, model)
    with disable_adapter(switched):
        assert same_bits(switched, baseline) and list(upgraded_layers(switched)) == ['7']


def test_an_adapter_of_an_upgraded_baseline_is_switched_against_its_own_offsets(tmp_path):
    baseline = trained_offsets(network(), 'last:2')
    model = copy.deepcopy(baseline)
    nn.init.normal_(model[7].conv_offset.bias)
    switched = with_its_adapter(baseline, model, tmp_path)
    assert same_bits(switched, model) and not same_bits(switched, baseline)
    with disable_adapter(switched):
        assert same_bits(switched, baseline) and list(upgraded_layers(switched)) == ['3', '7']


@pytest.mark.parametrize('wrap', [nn.DataParallel, lambda model: torch.compile(model, backend='eager')])
def test_a_wrapped_model_is_switched_as_the_one_inside(files, wrap):
    model = network()
    wrapped = wrap(model)
    load_adapter(wrapped, str(files / 'left.safetensors'))
    assert same_bits(wrapped, upgraded(files, 'left'))
    set_adapter(model, None)
    assert same_bits(wrapped, network())
    set_adapter(wrapped, 'left')
    with disable_adapter(wrapped):
        assert same_bits(wrapped, network())
    assert same_bits(model, upgraded(files, 'left'))


def test_a_convolution_that_is_used_twice_is_switched_in_both_places(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
    model.append(model[0])
    baseline = copy.deepcopy(model)
    upgrade_(model, ['0'])
    nn.init.normal_(model[0].conv_offset.bias)
    switched = with_its_adapter(baseline, model, tmp_path)
    assert same_bits(switched, model) and switched[2] is switched[0]
    with disable_adapter(switched):
        assert same_bits(switched, baseline) and switched[2] is switched[0]


def test_switched_off_a_model_exports_as_its_baseline(files):
    model = network()
    load_adapter(model, str(files / 'left.safetensors'))
    with disable_adapter(model):
        traced = torch.jit.trace(model, PICTURES)
        graph = torch.export.export(model, (PICTURES,)).graph
    assert same_bits(traced, network())
    assert 'deform_conv2d' not in str(graph) and 'deform_conv2d' in str(torch.export.export(model, (PICTURES,)).graph)


def refused(model, path, match, **settings):
    before, modules = model.state_dict(), dict(model.named_modules())
    with pytest.raises(CheckpointError, match=match):
        load_adapter(model, str(path), **settings)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_baseline_is_refused_by_name(files):
    refused(network(1), files / 'left.safetensors', r"does not hold the baseline of .*, which is 'baseline\.pth'")
    refused(network().half(), files / 'left.safetensors', 'before the network is sharded, fused or converted')


def test_other_targets_than_an_upgraded_networks_are_refused_by_name(files):
    match = r'of other targets: it has the layers .* {}, and the network is upgraded at {}; load it on'
    for name, other in (('left', 'right'), ('right', 'left')):
        needs, has = (r"\{'7': 1\}", r"\{'3': 1, '7': 1\}")[:: 1 if name == 'right' else -1]
        refused(upgraded(files, other), files / f'{name}.safetensors', match.format(needs, has))
    model = network()
    upgrade_(model, 'last:2', deform_groups=2)
    refused(model, files / 'left.safetensors', r"upgraded at \{'3': 2, '7': 2\}")


def test_a_damaged_adapter_is_refused_wherever_it_is_damaged(files, tmp_path):
    whole, damaged = (files / 'left.safetensors').read_bytes(), tmp_path / 'damaged.safetensors'
    start = int.from_bytes(whole[:8], 'little')
    for cut in (4, start, len(whole) - 1):
        damaged.write_bytes(whole[:cut])
        refused(network(), damaged, 'damaged.safetensors')
        with pytest.raises(CheckpointError, match='damaged.safetensors'):
            apply_delta(str(files / 'baseline.pth'), str(damaged), str(tmp_path / 'out.pth'))
    for bit in (*range(8 * 8, 8 * len(whole), 8 * len(whole) // 40), 8 * whole.index(b'baseline.pth')):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(flipped)
        refused(network(), damaged, 'damaged.safetensors')
    assert list(tmp_path.iterdir()) == [damaged]


def test_what_is_no_adapter_is_refused(files, tmp_path):
    model = network()
    refused(model, files / 'baseline.pth', 'is no delta')
    state = upgraded(files, 'left').state_dict()
    state['9.bias'] = state['9.bias'] + 1
    torch.save({'state_dict': state}, tmp_path / 'tuned.pth')
    make_delta(str(files / 'baseline.pth'), str(tmp_path / 'tuned.pth'), str(tmp_path / 'tuned.safetensors'))
    refused(model, tmp_path / 'tuned.safetensors', r'besides offset branches it changes 1 tensors \(9.bias\)')
    load_adapter(model, str(files / 'left.safetensors'))
    refused(model, files / 'left.safetensors', "called 'left' is loaded already")


def test_names_that_are_not_loaded_are_refused(files):
    model = network()
    with pytest.raises(UpgradeError, match='no adapter and no upgraded layer'), disable_adapter(model):
        pass
    load_adapter(model, str(files / 'left.safetensors'))
    with pytest.raises(UpgradeError, match="no adapter 'right': 'left' are loaded"):
        set_adapter(model, 'right')
    assert same_bits(model, upgraded(files, 'left'))


def test_parameters_alone_are_not_hidden_by_counters(files, tmp_path):
    """A file of another library has no counters of batch norms, which the network adds as zeros."""
    state = {key: value for key, value in network().state_dict().items() if not key.endswith('num_batches_tracked')}
    torch.save({'state_dict': state}, tmp_path / 'bare.pth')
    make_delta(*map(str, (tmp_path / 'bare.pth', files / 'left.pth', tmp_path / 'a.safetensors')))
    model = network()
    load_adapter(model, str(tmp_path / 'a.safetensors'))
    assert same_bits(model, upgraded(files, 'left'))
    apply_delta(*map(str, (tmp_path / 'bare.pth', tmp_path / 'a.safetensors', tmp_path / 'out.pth')))
    assert torch.load(tmp_path / 'out.pth')['state_dict'].keys() == upgraded(files, 'left').state_dict().keys()


def test_layers_upgraded_or_reverted_later_are_switched_as_well():
    model, baseline = network(), network()
    upgrade_(model, 'last:1')
    with disable_adapter(model):
        pass
    upgrade_(model, 'last:1')  # the one before it
    layers = upgraded_layers(model)
    for layer in layers.values():
        torch.nn.init.constant_(layer.conv_offset.bias, 0.5)
    with disable_adapter(model):
        assert torch.equal(model(PICTURES), baseline(PICTURES)) and not upgraded_layers(model)
    gone = next(iter(layers))
    revert_(model, drop=[gone])
    with disable_adapter(model):
        pass
    assert len(layers) == 2 and list(upgraded_layers(model)) == list(layers)[1:]


def test_a_network_that_changes_under_its_adapters_says_so(files):
    model = network()
    model.load_state_dict(torch.load(files / 'baseline.pth')['state_dict'])
    load_adapter(model, str(files / 'right.safetensors'))
    upgrade_(model, 'last:1')
    with pytest.raises(UpgradeError, match="upgraded or reverted while its adapters 'right' were loaded"):
        set_adapter(model, None)


def test_hooks_of_a_layer_are_called_while_its_adapter_is_off():
    model, seen = network(), []
    upgrade_(model, 'last:1')
    (layer,) = upgraded_layers(model).values()
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    with disable_adapter(model):
        model(PICTURES)
        handle.remove()
        model(PICTURES)
    model(PICTURES)
    assert seen == [1]
