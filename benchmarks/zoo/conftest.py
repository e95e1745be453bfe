"""Configs made to order, for what the frameworks' own rarely show."""

import urllib.request

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from benchmarks.zoo import configs


class Picture(nn.Module):
    """A backbone made to order."""

    def __init__(self, kind='plain', in_channels=3):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
        )
        self.kind = kind
        if kind == 'no convolutions':
            self.convs = nn.Conv2d(3, 8, 1)
        elif kind == 'frozen':
            self.convs.requires_grad_(False)
        elif kind == 'download':
            urllib.request.urlopen('http://example.com/weights.pth')
        elif kind == 'idle':
            self.spare = nn.ModuleList(nn.Conv2d(8, 8, 3) for _ in range(3))

    def forward(self, x):
        if self.kind == 'broken':
            raise ValueError('this backbone takes no picture')
        if self.kind == 'constant':
            return (torch.zeros(1, 8, 4, 4),)
        return (self.convs(x),)


class Neck(nn.Module):
    def __init__(self, works=True):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)
        self.works = works

    def forward(self, maps):
        if not self.works:
            raise RuntimeError('resample_forward_impl: implementation for device cpu not found.')
        return [self.conv(x) for x in maps]


class Whole(nn.Module):
    """A detector as far as the sweep looks at one; ``detector`` is built twice, as by a teacher and its student."""

    def __init__(self, backbone=None, neck=None, detector=None):
        super().__init__()
        for name, cfg in dict(backbone=backbone, neck=neck, student=detector, teacher=detector).items():
            if cfg:
                setattr(self, name, MODELS.build(cfg))


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """Writes a config by its model into a zoo of its own and returns its name."""
    for module in (Picture, Neck, Whole):
        monkeypatch.setitem(MODELS._module_dict, f'Zoo{module.__name__}', module)
    monkeypatch.setattr(configs, 'config_root', lambda library: tmp_path)

    def write(text='', **model):
        name = f'made{len(list(tmp_path.iterdir()))}.py'
        (tmp_path / name).write_text(text or f'model = {dict(type="ZooWhole", **model)}\n')
        return f'mmdet/{name}'

    return write


def backbone(kind='plain'):
    return dict(type='ZooPicture', kind=kind)
