"""How far one step moves the offsets, and the limit to it, in plain PyTorch."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LinearLR

from mmdeform_upgrade import OffsetOptimizer, split_offsets, upgrade_
from mmdeform_upgrade.layers import upgraded_layers
from mmdeform_upgrade.offsets.step_limit import StepLimit

PICTURES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _network(scale=1.0):
    """Two upgraded layers; the second one's inputs are ``scale`` times as large, the function is the same."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 4, 3)]
    with torch.no_grad():
        convolutions[1].weight *= scale
        convolutions[1].bias *= scale
        convolutions[2].weight /= scale
    model = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])
    upgrade_(model, ['2', '4'])
    return model


def _optimizer(model, lr=0.002, apart=True):
    others, _ = split_offsets(model)
    offsets = [{'params': list(layer.conv_offset.parameters())} for layer in upgraded_layers(model).values()]
    if not apart:
        offsets = [p for group in offsets for p in group['params']]
    return OffsetOptimizer(SGD(others, lr=0.001), torch.optim.Adam(offsets, lr=lr))


def _step(model, optimizer):
    optimizer.zero_grad()
    model(PICTURES).square().mean().backward()
    optimizer.step()


def _rates(optimizer):
    return [group['lr'] for group in optimizer.param_groups if group.get('offsets')]


def _offsets(model, name):
    seen = []
    branch = model.get_submodule(name).conv_offset
    with branch.register_forward_hook(lambda m, args, out: seen.append(out.detach() - m.bias.detach().view(-1, 1, 1))):
        model(PICTURES)
    return seen[0]


@pytest.mark.parametrize('warmup', [1.0, 0.01])
def test_the_rate_of_the_layer_that_one_step_moves_by_pixels_is_lowered_to_the_limit(warmup):
    model = _network(scale=1000.0)
    optimizer = _optimizer(model)
    LinearLR(optimizer, warmup, total_iters=100)
    limit = StepLimit(model, optimizer)
    _step(model, optimizer)
    assert limit.apply() == {} and not limit.done, 'nothing has run since the step'
    moved = float(_offsets(model, '4').square().mean().sqrt()) / warmup
    lowered = limit.apply()
    assert list(lowered) == ['4'] and lowered['4'][0] == pytest.approx(moved, rel=1e-3) and moved > 0.5
    slow, fast = _rates(optimizer)
    assert slow == pytest.approx(0.002 * warmup)
    assert fast == pytest.approx(0.002 * warmup * 0.5 / moved, rel=1e-3)
    assert limit.done and not any(layer.conv_offset._forward_hooks for layer in upgraded_layers(model).values())


def test_a_second_step_at_the_lowered_rate_moves_the_offsets_by_the_limit():
    model = _network(scale=1000.0)
    optimizer = _optimizer(model)
    limit = StepLimit(model, optimizer, pixels=0.1)
    _step(model, optimizer)
    _step(model, optimizer)
    limit.apply()
    again = _network(scale=1000.0)
    slow = _optimizer(again)
    for group, lowered in zip(slow.param_groups, optimizer.param_groups, strict=True):
        group.update({key: lowered[key] for key in ('lr', 'offset_lr') if key in lowered})
    _step(again, slow)
    assert float(_offsets(again, '4').square().mean().sqrt()) == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize('learned', [0.0, 1e-5])
def test_the_steps_before_the_measurement_are_shortened_as_the_rate_is(learned):
    """Taps that they have led out of the map would get no gradient that leads back."""
    model = _network(scale=1000.0)
    branch = model.get_submodule('4').conv_offset
    nn.init.normal_(branch.weight, std=learned)
    start = branch.weight.detach().clone()
    optimizer = _optimizer(model)
    limit = StepLimit(model, optimizer)
    _step(model, optimizer)
    _step(model, optimizer)
    others = {key: value.clone() for key, value in model.state_dict().items() if '4.conv_offset' not in key}
    moved = branch.weight.detach() - start
    factor = limit.apply()['4'][1]
    assert factor < 0.5
    torch.testing.assert_close(branch.weight.detach() - start, moved * factor, rtol=1e-3, atol=1e-9)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in others.items())


@pytest.mark.parametrize('warmup', [None, 0.1])
@pytest.mark.parametrize('ratio', [8, 0.25])
def test_the_limit_is_of_the_rate_that_the_batch_size_has_scaled(ratio, warmup):
    """As MMEngine's ``auto_scale_lr`` does between building the optimizer and its schedulers."""
    rates = []
    for scale in (1, ratio):
        model = _network(scale=1000.0)
        optimizer = _optimizer(model)
        for group in optimizer.param_groups:
            group['lr'] *= scale
        if warmup:
            LinearLR(optimizer, warmup, total_iters=100)
        limit = StepLimit(model, optimizer, pixels=1e-4)
        _step(model, optimizer)
        _step(model, optimizer)
        assert set(limit.apply()) == {'2', '4'}
        rates.append(_rates(optimizer))
    if ratio > 1 or warmup:
        assert rates[0] == pytest.approx(rates[1], rel=0.05)
    else:  # lowered by hand, for all that is known
        assert rates[0] == pytest.approx([rate / ratio for rate in rates[1]], rel=0.05)


def _only_one_measures(rank, folder):
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    model = _network(scale=1000.0)
    optimizer = _optimizer(model)
    limit = StepLimit(model, optimizer)
    _step(model, optimizer)
    if rank == 1:
        model(PICTURES)
    limit.apply()
    torch.save((limit.done, _rates(optimizer)), f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


def test_processes_agree_though_no_layer_has_run_in_one_of_them(tmp_path):
    """As behind a branch that not every picture takes."""
    torch.multiprocessing.spawn(_only_one_measures, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in (0, 1))
    assert first == second and first[0] and min(first[1]) < 0.002


def test_rates_within_the_limit_are_left_alone_to_the_bit():
    trained = []
    for limited in (True, False):
        model = _network()
        optimizer = _optimizer(model)
        limit = StepLimit(model, optimizer) if limited else None
        for _ in range(4):
            _step(model, optimizer)
            assert limit is None or limit.apply() == {}
        assert limit is None or limit.done
        trained.append(model.state_dict())
    assert all(torch.equal(value, trained[1][key]) for key, value in trained[0].items())


def test_layers_of_one_group_share_the_lower_rate():
    model = _network(scale=1000.0)
    optimizer = _optimizer(model, apart=False)
    limit = StepLimit(model, optimizer)
    _step(model, optimizer)
    _step(model, optimizer)
    assert set(limit.apply()) == {'2', '4'}
    assert _rates(optimizer)[0] < 0.002


@pytest.mark.parametrize('steps', [1, 2])
def test_a_resumed_optimizer_is_limited_once(steps):
    model = _network(scale=1000.0)
    optimizer = _optimizer(model)
    limit = StepLimit(model, optimizer)
    for _ in range(steps):
        _step(model, optimizer)
        limit.apply()
    resumed = _optimizer(model)
    resumed.load_state_dict(optimizer.state_dict())
    again = StepLimit(model, resumed)
    assert again.done == (steps == 2), 'the second step is the one that measures'
    _step(model, resumed)
    _step(model, resumed)
    assert bool(again.apply()) == (steps == 1)


def test_a_run_that_was_cut_before_the_measurement_measures_the_same():
    model = _network(scale=1000.0)
    optimizer = _optimizer(model)
    limit = StepLimit(model, optimizer)
    _step(model, optimizer)
    limit.apply()
    cut = _network()
    cut.load_state_dict(model.state_dict())
    resumed = _optimizer(cut)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again = StepLimit(cut, resumed)
    for network, stepper, its_limit in ((model, optimizer, limit), (cut, resumed, again)):
        _step(network, stepper)
        assert its_limit.apply()
        _step(network, stepper)
    assert _rates(resumed) == _rates(optimizer)
    assert all(torch.equal(value, cut.state_dict()[name]) for name, value in model.state_dict().items())


def test_offsets_that_start_as_they_were_learned_are_measured_by_their_change():
    model = _network(scale=1000.0)
    for layer in upgraded_layers(model).values():
        nn.init.normal_(layer.conv_offset.weight, std=1e-5)
    optimizer = _optimizer(model)
    start = model.get_submodule('4').conv_offset.weight.detach().clone()
    limit = StepLimit(model, optimizer)
    _step(model, optimizer)
    change = model.get_submodule('4').conv_offset.weight.detach() - start
    model.train()
    _step(model, optimizer)
    seen = []
    branch = model.get_submodule('4').conv_offset
    with branch.register_forward_hook(lambda m, args, _: seen.append(torch.conv2d(args[0], change, None, *args[1:]))):
        model(PICTURES)
    assert limit.apply()['4'][0] == pytest.approx(float(seen[0].square().mean().sqrt()), rel=0.05)


def test_without_an_adam_of_their_own_there_is_nothing_to_limit():
    model = _network(scale=1000.0)
    others, offsets = split_offsets(model)
    for optimizer in (
        AdamW(model.parameters(), lr=0.01),
        OffsetOptimizer(SGD(others, lr=0.01), SGD([{'params': offsets}], lr=0.01)),
        OffsetOptimizer(AdamW(others, lr=0.01), AdamW([{'params': offsets, 'multiple': True}], lr=0.01)),
    ):
        limit = StepLimit(model, optimizer)
        assert limit.done
        _step(model, optimizer)
        assert limit.apply() == {}


def test_on_a_small_map_a_step_is_at_most_a_fiftieth_of_it():
    model = _network(scale=1000.0)
    optimizer = _optimizer(model)
    limit = StepLimit(model, optimizer)
    small = PICTURES[..., :12, :16]  # the second layer's map is 8 x 12
    for _ in range(2):
        optimizer.zero_grad()
        model(small).square().mean().backward()
        optimizer.step()
    pixels, factor = limit.apply()['4']
    assert pixels * factor == pytest.approx(8 / 50)


def test_in_float16_the_same_is_measured():
    """Squared steps at a rate of 1 leave its range."""
    found = []
    for enabled in (False, True):
        model = _network(scale=1000.0)
        optimizer = _optimizer(model)
        limit = StepLimit(model, optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            with torch.autocast('cpu', torch.float16, enabled=enabled):
                loss = model(PICTURES).float().square().mean()
            loss.backward()
            optimizer.step()
        found.append(limit.apply()['4'])
    assert found[1] == pytest.approx(found[0], rel=0.05)
