"""The signal in the offsets' gradient tells a planted deformation from noise, and changes nothing."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmdeform_upgrade import upgrade_
from mmdeform_upgrade.analysis.signal import FEWEST, offset_signal
from mmdeform_upgrade.errors import TargetError, TrainingError


def _pictures(count, size=24):
    """Smooth maps without negative values, as after a ReLU, (count, 2, size, size)."""
    return F.interpolate(torch.rand(count, 2, size // 3, size // 3), size=(size, size), mode='bilinear')


def _planted(count, shuffled=False):
    """Pictures, and what a kernel whose taps are two pixels apart makes of them; four pictures a batch."""
    teacher = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(7))
    pictures = _pictures(count * 4)
    truth = F.conv2d(pictures, teacher, padding=2, dilation=2)
    return list(zip(pictures.split(4), (truth.flip(0) if shuffled else truth).split(4), strict=True))


def _loss(model, batch):
    pictures, truth = batch
    return F.mse_loss(model(pictures)[..., 3:-3, 3:-3], truth[..., 3:-3, 3:-3])


def _trained_out(batches):
    """The plain layer, its taps one pixel apart, that fits the batches best; upgraded."""
    pictures, truth = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    patches = F.unfold(pictures[..., 2:-2, 2:-2], 3).transpose(1, 2).flatten(0, 1)  # (pixels, 18)
    patches = torch.cat((patches, torch.ones(len(patches), 1)), 1)
    target = truth[..., 3:-3, 3:-3].flatten(2).transpose(1, 2).flatten(0, 1)  # (pixels, 4)
    best = torch.linalg.solve(patches.T @ patches + torch.eye(19), patches.T @ target)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1))
    with torch.no_grad():
        model[0].weight.copy_(best[:-1].T.view(4, 2, 3, 3))
        model[0].bias.copy_(best[-1])
    upgrade_(model, 'last:1')
    return model


@pytest.mark.parametrize('shuffled, verdict', [(False, 'learns'), (True, 'noise')])
def test_a_planted_deformation_is_told_from_shuffled_labels(shuffled, verdict):
    model = _trained_out(_planted(400, shuffled))
    (found,) = offset_signal(model, _planted(32, shuffled), _loss)
    assert found.verdict == verdict
    assert found.snr > 3 if verdict == 'learns' else abs(found.z) < 2.5
    assert (found.layer, found.batches) == ('0', 32)


def _gradients(noise, count):
    """The measurement on given gradients, of a network whose loss has them."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3))
    upgrade_(model, 'last:1')
    weight = model[0].conv_offset.weight
    return offset_signal(
        model, noise[:count], lambda model, g: (weight.flatten() * g).sum() + 0 * model[0].weight.sum()
    )


@pytest.mark.parametrize('directions', [1, 8, 162])
@pytest.mark.parametrize('count', [FEWEST, 40])
def test_noise_is_called_noise_however_few_directions_hold_it(directions, count):
    ratios, learned = [], 0
    for _ in range(150):
        noise = torch.randn(count, directions) @ torch.randn(directions, 162) * torch.randn(count, 1).exp()
        (found,) = _gradients(noise, count)
        ratios.append(found.snr)
        learned += found.verdict == 'learns'
    assert learned <= 4  # less than one is expected
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.3)


def test_the_ratio_is_that_of_its_definition_and_the_noise_scale_does_not_grow_with_batches():
    mean = torch.randn(162) / 3
    gradients = mean + torch.randn(400, 162)
    (short,), (long,) = _gradients(gradients, 40), _gradients(gradients, 400)
    first = gradients[:40]
    assert short.snr == pytest.approx(float(first.mean(0).square().sum() / (first.var(0).sum() / 40)), rel=1e-4)
    assert long.snr > 5 * short.snr
    assert short.noise_scale == pytest.approx(162 / float(mean.square().sum()), rel=0.3)
    assert long.noise_scale == pytest.approx(short.noise_scale, rel=0.3)


def test_a_layer_that_the_loss_does_not_reach_has_no_gradient():
    model = nn.ModuleList([nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)])
    upgrade_(model, 'last:2')
    used, unused = offset_signal(model, _planted(FEWEST), lambda model, batch: _loss(model[0], batch))
    assert (used.verdict, unused.verdict) == ('learns', 'no gradient') and math.isnan(unused.z)


def test_a_gradient_in_a_single_batch_is_noise():
    model = nn.ModuleList([nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)])
    upgrade_(model, 'last:2')
    first, *rest = _planted(FEWEST)

    def loss(model, batch):
        return _loss(model[0], batch) + (_loss(model[1], batch) if batch is first else 0)

    _, once = offset_signal(model, [first, *rest], loss)
    assert (once.verdict, once.z) == ('noise', 0)


def test_a_step_is_as_long_as_adams_first_one():
    batches = _planted(FEWEST)
    model = _trained_out(batches)
    (found,) = offset_signal(model, batches, _loss, lr=0.01)
    branch = model[0].conv_offset
    optimizer = torch.optim.Adam([branch.weight], lr=0.01)
    _loss(model, batches[0]).backward()
    optimizer.step()
    moved = branch(batches[1][0], *((1, 1),) * 3)
    assert found.step == pytest.approx(float(moved.detach().square().mean().sqrt()), rel=1e-3)


def test_cost_is_what_the_offsets_add_to_the_whole_plain_network():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, padding=1), nn.Conv2d(8, 4, 1))
    upgrade_(model, ['1'])
    batches = [torch.randn(2, 2, 8, 8) for _ in range(FEWEST)]
    (found,) = offset_signal(model, batches, lambda model, batch: model(batch).square().mean())
    plain = 64 * 2 * 4 * 9 + 16 * 4 * 8 * 9 + 16 * 8 * 4
    assert found.cost == pytest.approx(16 * (18 * 4 * 9 + 4 * 4 * 9) / plain)


def test_measuring_leaves_the_network_as_it_was():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))
    model[0].requires_grad_(False)
    upgrade_(model, ['2'])
    before = copy.deepcopy(model.state_dict())
    found = offset_signal(model, _planted(FEWEST), _loss)
    assert [layer.layer for layer in found] == ['2']
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_what_cannot_be_measured_is_refused():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1))
    with pytest.raises(TargetError, match='Sequential has no ZeroOffsetDCN whose offsets train'):
        offset_signal(model, _planted(FEWEST), _loss)
    upgrade_(model, 'last:1')
    with pytest.raises(TrainingError, match=f'3 batches cannot tell .* give at least {FEWEST}'):
        offset_signal(model, _planted(3), _loss)
    with pytest.raises(TrainingError, match='the loss of batch 1 is nan, expected a finite number'):
        offset_signal(model, _planted(FEWEST), lambda model, batch: _loss(model, batch) * math.nan)
