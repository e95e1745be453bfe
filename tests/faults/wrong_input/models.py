"""Wrong calls on a model: which convolutions, upgraded and turned back."""

import contextlib

import torch
from hypothesis import strategies as st
from torch import nn

from mmdeform_upgrade import (
    UpgradeError,
    ZeroOffsetDCN,
    find_targets,
    revert_,
    upgrade_,
)

from .common import JUNK, fingerprint, nothing_else_changes


class Block(nn.Module):
    def __init__(self, channels, frozen=False):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2.requires_grad_(not frozen)

    def forward(self, x):
        return x + self.conv2(self.conv1(x)).relu()


class Network(nn.Module):
    """A ResNet's names, some of its convolutions frozen, tied, or of a kind that cannot be upgraded."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, (1, 3), padding=(0, 1), padding_mode='reflect')
        self.layer1 = nn.Sequential(Block(4, frozen=True))
        self.layer4 = nn.Sequential(Block(4), Block(4))
        self.weird = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
        self.last = self.layer4[1].conv2

    def forward(self, x):
        return self.last(self.weird(self.layer4(self.layer1(self.conv1(x)))))


ENTRY = st.one_of(
    st.sampled_from(
        [
            'layer4.0.conv2',
            '0.conv2',
            'conv2',
            'conv1',
            'layer4',
            'last',
            'weird',
            'layer1.0.conv2',
            'res5',
            'res5a',
            'res5a,b',
            'res5c',
            'res4b20-22',
            'in:layer4',
            'in:nothing',
            'in:',
            'layer4.9.conv2',
            'backbone.layer4.0.conv2',
            r'layer4\..*',
            '.*',
            '(',
            '*',
            '[a',
            '',
            ' ',
            'last:',
            '\x00',
            'é',
        ]
    ),
    st.integers(-3, 200).map(lambda number: f'last:{number}'),
    st.text('layer41.conv2:*+', max_size=8),
)
TARGETS = st.one_of(
    ENTRY,
    st.lists(ENTRY, max_size=3),
    st.lists(ENTRY, max_size=2).map(tuple),
    st.dictionaries(ENTRY, st.one_of(st.integers(-1, 5), JUNK), max_size=2),
    JUNK,
)
GROUPS = st.one_of(st.integers(-1, 5), JUNK)


def check_find_targets(data):
    model, targets, exclude = Network(), data.draw(TARGETS), data.draw(st.one_of(st.just(()), TARGETS))
    before = fingerprint(model)
    with nothing_else_changes(), contextlib.suppress(UpgradeError):
        names = find_targets(model, targets, exclude)
        assert names and len(set(names)) == len(names)
        assert all(type(model.get_submodule(name)) is nn.Conv2d for name in names)
    assert fingerprint(model) == before


def check_upgrade(data):
    model = Network()
    arguments = dict(
        exclude=data.draw(st.one_of(st.just(()), TARGETS)),
        deform_groups=data.draw(GROUPS),
    )
    targets, picture = data.draw(TARGETS), torch.randn(1, 3, 5, 6)
    before, output = fingerprint(model), model(picture)
    try:
        with nothing_else_changes():
            report = upgrade_(model, targets, **arguments)
    except UpgradeError:
        assert fingerprint(model) == before
        return
    assert report.names and all(isinstance(model.get_submodule(name), ZeroOffsetDCN) for name in report.names)
    assert torch.allclose(model(picture), output, atol=1e-5)
    assert str(report)
    revert_(model)
    assert fingerprint(model)[1] == before[1]


def check_revert(data):
    model = Network()
    if data.draw(st.booleans()):
        upgrade_(model, 'in:layer4')
        if data.draw(st.booleans()):
            model.layer4[0].conv2.conv_offset.bias.data.fill_(1.0)
    drop = data.draw(st.one_of(JUNK, st.lists(st.one_of(ENTRY, JUNK), max_size=2), st.just(['layer4.0.conv2'])))
    before = fingerprint(model)
    try:
        with nothing_else_changes():
            names = revert_(model, drop=drop)
    except UpgradeError:
        assert fingerprint(model) == before
        return
    assert all(type(model.get_submodule(name)) is nn.Conv2d for name in names)
