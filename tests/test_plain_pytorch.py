"""`upgrade_` in a training loop of one's own, with nothing of MMEngine."""

import copy

import pytest
import torch
from torch import nn

from mmdeform_upgrade import load_baseline, upgrade_
from mmdeform_upgrade.checkpoint import remap_state_dict

from .conftest import relative_error


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=2)

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.norm(self.conv1(x)))))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.blocks = nn.Sequential(Residual(8), Residual(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def _train(model, steps, pictures, labels):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(pictures), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def trained():
    pictures, labels = torch.randn(12, 3, 20, 20), torch.arange(12) % 3
    model = Classifier()
    _train(model, 5, pictures, labels)
    return model, pictures, labels


def test_a_loop_of_ones_own_trains_the_upgrade(trained):
    baseline, pictures, labels = trained
    model = copy.deepcopy(baseline)
    report = upgrade_(model, 'last:3')
    assert report.names == ['blocks.0.conv2', 'blocks.1.conv1', 'blocks.1.conv2']
    with torch.no_grad():
        assert relative_error(model.eval()(pictures), baseline.eval()(pictures)) < 1e-5
    losses = _train(model.train(), 5, pictures, labels)
    assert losses[-1] < losses[0]
    moved = [name for name, value in model.state_dict().items() if 'conv_offset' in name and value.any()]
    assert len(moved) == 6

    again = Classifier()
    upgrade_(again, 'last:3')
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(pictures), model.eval()(pictures))


def test_a_bare_state_dict_is_read_into_the_upgrade(trained, tmp_path):
    baseline, pictures, _ = trained
    torch.save(baseline.state_dict(), tmp_path / 'baseline.pth')
    model = Classifier()
    upgrade_(model, 'last:3')
    state = load_baseline(tmp_path / 'baseline.pth')
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert len(missing) == 6 and all('conv_offset' in key for key in missing)
    with torch.no_grad():
        assert relative_error(model.eval()(pictures), baseline.eval()(pictures)) < 1e-5
    strict = remap_state_dict(state, model.state_dict())
    model.load_state_dict(strict)
    torch.save(model.state_dict(), tmp_path / 'upgrade.pth')
    assert load_baseline(tmp_path / 'upgrade.pth').keys() == model.state_dict().keys()


class Wrapper(nn.Module):
    """A network with a part that is called as those of PyTorch's wrappers."""

    def __init__(self, network):
        super().__init__()
        self.module = network


@pytest.mark.parametrize('wrap', [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel])
def test_names_that_a_wrapper_left_are_those_of_the_network_and_its_own_stay(wrap, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    torch.save(wrap(network).state_dict(), tmp_path / 'wrapped.pth')
    torch.save(Wrapper(network).state_dict(), tmp_path / 'own.pth')
    assert load_baseline(tmp_path / 'wrapped.pth', network).keys() == network.state_dict().keys()
    assert load_baseline(tmp_path / 'own.pth', Wrapper(network)).keys() == Wrapper(network).state_dict().keys()
