"""A small network with layers that a switch of offsets may disturb, and offsets of it that were trained."""

import copy

import torch
from torch import nn

from mmdeform_upgrade import train_offsets_, upgrade_
from mmdeform_upgrade.layers import upgraded_layers

PICTURES = torch.linspace(-2, 2, 2 * 3 * 16 * 16).sin().view(2, 3, 16, 16)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Dropout(0.5),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Flatten(),
        nn.Linear(8 * 16 * 16, 2),
    ).eval()


def trained_offsets(model, targets, steps=3):
    """An upgrade of ``model`` whose offsets alone were trained."""
    model = copy.deepcopy(model)
    upgrade_(model, targets)
    train_offsets_(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        model(PICTURES).square().mean().backward()
        optimizer.step()
    assert {id(p) for p in optimizer.state} == {
        id(p) for layer in upgraded_layers(model).values() for p in layer.conv_offset.parameters()
    }
    return model.eval()
