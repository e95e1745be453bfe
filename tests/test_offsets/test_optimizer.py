"""The offsets' optimizer in plain PyTorch."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, StepLR

from mmdeform_upgrade import UpgradeError, upgrade_
from mmdeform_upgrade.offsets.optimizer import OFFSET_LR, OffsetOptimizer, split_offsets

PICTURES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def _network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    upgrade_(model, 'last:1')
    return model


def _optimizer(model, base=SGD, **settings):
    others, offsets = split_offsets(model)
    return OffsetOptimizer(base(others, **{'lr': 0.01, **settings}), offsets)


def _train(model, optimizer, steps, scheduler=None):
    for _ in range(steps):
        optimizer.zero_grad()
        model(PICTURES).square().mean().backward()
        optimizer.step()
        if scheduler:
            scheduler.step()


@pytest.mark.parametrize('base', [SGD, AdamW, torch.optim.Adagrad, torch.optim.RMSprop])
def test_each_part_steps_as_it_would_alone(base):
    together, apart = _network(), _network()
    _train(together, _optimizer(together, base), 3)
    others, offsets = split_offsets(apart)
    alone = [base(others, lr=0.01), Adam(offsets, lr=OFFSET_LR)]
    for _ in range(3):
        apart.zero_grad()
        apart(PICTURES).square().mean().backward()
        for optimizer in alone:
            optimizer.step()
    for name, value in together.state_dict().items():
        assert torch.equal(value, apart.state_dict()[name]), name


@pytest.mark.parametrize('base,settings', [(SGD, {'momentum': 0.9}), (AdamW, {'weight_decay': 0.1})])
def test_resumed_goes_on_bit_for_bit(base, settings):
    straight, first, second = _network(), _network(), _network()
    optimizers = [_optimizer(model, base, **settings) for model in (straight, first, second)]
    schedulers = [CosineAnnealingLR(optimizer, 8) for optimizer in optimizers]
    _train(straight, optimizers[0], 6, schedulers[0])
    _train(first, optimizers[1], 3, schedulers[1])
    for new, old in ((second, first), (optimizers[2], optimizers[1]), (schedulers[2], schedulers[1])):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    _train(second, optimizers[2], 3, schedulers[2])
    for name, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize(
    'scheduler',
    [
        lambda optimizer: StepLR(optimizer, 2),
        lambda optimizer: LinearLR(optimizer, 0.1, total_iters=4),
        lambda optimizer: CosineAnnealingLR(optimizer, 6, eta_min=0.005),
        lambda optimizer: OneCycleLR(optimizer, max_lr=0.5, total_steps=8),
    ],
)
def test_offsets_follow_the_schedules_shape(scheduler):
    model = _network()
    optimizer = _optimizer(model, momentum=0.9)
    scheduler = scheduler(optimizer)
    peak = optimizer.param_groups[0].get('max_lr', 0.01)
    for _ in range(6):
        weights, offsets = optimizer.param_groups
        assert offsets['lr'] / OFFSET_LR == pytest.approx(weights['lr'] / peak)
        _train(model, optimizer, 1, scheduler)


def test_offsets_alone_can_be_trained():
    model = _network().requires_grad_(False)
    model[3].conv_offset.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    _, offsets = split_offsets(model)
    _train(model.eval(), OffsetOptimizer(SGD(model[0].parameters(), lr=0.01), offsets), 2)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {'3.conv_offset.weight', '3.conv_offset.bias'}


def test_it_is_copied_compiled_and_extended():
    model = _network()
    optimizer = copy.deepcopy(_optimizer(model, momentum=0.9))
    torch.compile(optimizer.step, backend='eager')()
    added = nn.Parameter(torch.ones(1))
    optimizer.add_param_group({'params': [added], 'lr': 0.1})
    added.grad = torch.ones(1)
    optimizer.step()
    assert added.item() == pytest.approx(0.9)


def test_a_gradient_scaler_sees_one_optimizer():
    model = _network()
    optimizer = _optimizer(model, momentum=0.9)
    scaler = torch.amp.GradScaler('cpu') if hasattr(torch.amp, 'GradScaler') else pytest.skip('no scaler on the CPU')
    before = copy.deepcopy(model.state_dict())
    scaler.scale(model(PICTURES).square().mean() * float('inf')).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model[3].weight, before['3.weight']) and not optimizer.state, 'the step was skipped'
    optimizer.zero_grad()
    scaler.scale(model(PICTURES).square().mean()).backward()
    scaler.step(optimizer)
    assert float(model[3].conv_offset.weight.detach().abs().max()) == pytest.approx(OFFSET_LR, rel=0.01)


@pytest.mark.parametrize('lr', [0, -1e-3, float('nan'), float('inf'), '0.002', True])
def test_a_rate_that_is_not_positive_is_refused(lr):
    others, offsets = split_offsets(_network())
    with pytest.raises(UpgradeError, match='learning rate of the offsets is .*expected a positive number'):
        OffsetOptimizer(SGD(others, lr=0.01), offsets, lr=lr)


def test_mistakes_are_named():
    model = _network()
    others, offsets = split_offsets(model)
    with pytest.raises(UpgradeError, match='base is a list, expected a torch.optim.Optimizer'):
        OffsetOptimizer(others, offsets)
    with pytest.raises(UpgradeError, match=r'2 parameters of offset branches are in the base optimizer.*split_offsets'):
        OffsetOptimizer(SGD(model.parameters(), lr=0.01), offsets)
    with pytest.raises(UpgradeError, match='no offsets to train: upgrade the network before'):
        OffsetOptimizer(SGD(others, lr=0.01), [])
    optimizer = OffsetOptimizer(SGD(others, lr=0.01), offsets)
    with pytest.raises(UpgradeError, match='state has 1 groups and 0 of offsets, this optimizer has 1 groups and 1'):
        optimizer.load_state_dict(SGD(model.parameters(), lr=0.01).state_dict())
