# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Whole networks of torchvision, plain and upgraded: what a training step and an inference cost."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import mmdeform_upgrade.layers
from mmdeform_upgrade import upgrade_
from mmdeform_upgrade.analysis.offsets import scatter_offsets_

SIGMA = 1.5  # of the offsets, in pixels


class Network(NamedTuple):
    """A network, where its backbone is, what it is trained on, and which layers are upgraded."""

    build: Callable[[], nn.Module]
    backbone: str
    size: tuple[int, int]
    batch: int
    targets: dict[str, str]


def networks() -> dict[str, Network]:
    """SSD512, Faster R-CNN and DeepLabV3 with a ResNet-50, with the batch that a GPU usually trains."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn
    from torchvision.models.segmentation import deeplabv3_resnet50

    last = {'last 3': 'last:3'}
    bare: dict[str, Any] = {'weights': None, 'weights_backbone': None}
    return {
        'SSD512-R50': Network(_ssd512, 'backbone.body', (512, 512), 16, {**last, 'last 6': 'last:6'}),
        'Faster R-CNN R50-FPN': Network(
            lambda: fasterrcnn_resnet50_fpn(**bare, num_classes=91),
            'backbone.body',
            (800, 1344),
            2,
            {**last, 'c3-c5': r'layer[234]\.\d\.conv2'},
        ),
        'DeepLabV3-R50': Network(lambda: deeplabv3_resnet50(**bare, num_classes=21), 'backbone', (512, 512), 8, last),
    }


class _Pyramid(nn.Module):
    """ResNet-50 to stride 32 and four smaller maps."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50
        from torchvision.models._utils import IntermediateLayerGetter

        self.body = IntermediateLayerGetter(resnet50(weights=None), {'layer2': '0', 'layer3': '1', 'layer4': '2'})
        self.extra = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, 128, 1), nn.ReLU(), nn.Conv2d(128, 256, 3, 2, 1), nn.ReLU())
            for c in (2048, 256, 256, 256)
        )

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = list(self.body(x).values())
        for block in self.extra:
            maps.append(block(maps[-1]))
        return OrderedDict((str(i), m) for i, m in enumerate(maps))


def _ssd512() -> nn.Module:
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD, SSDHead

    anchors = DefaultBoxGenerator([[2, 3]] * 5 + [[2]] * 2, steps=[8, 16, 32, 64, 128, 256, 512])
    head = SSDHead([512, 1024, 2048, 256, 256, 256, 256], anchors.num_anchors_per_location(), 21)
    return SSD(_Pyramid(), anchors, (512, 512), 21, head=head)


def prepared(network: Network, targets: str | None, device: str, scale: float = 1.0) -> Steps:
    """The network on a device, upgraded with offsets that spread as trained ones do, and its steps."""
    torch.manual_seed(0)
    model = network.build()
    upgraded = model.get_submodule(network.backbone)
    if targets:
        upgrade_(upgraded, targets)
    model = model.to(device, memory_format=torch.channels_last)
    steps = Steps(model, network, device, scale)
    if targets:
        scatter_offsets_(upgraded, SIGMA, lambda: upgraded(steps.pictures))
    return steps


class Steps:
    """A training step and an inference of one network."""

    def __init__(self, model: nn.Module, network: Network, device: str, scale: float) -> None:
        height, width = (max(64, int(side * scale) // 32 * 32) for side in network.size)
        batch = network.batch if scale == 1 else 2
        self.model = model
        if hasattr(model, 'transform'):  # pictures keep their size
            model.transform.min_size, model.transform.max_size = (min(height, width),), max(height, width)
            model.transform.fixed_size = model.transform.fixed_size and (width, height)
        self.pictures = torch.rand(batch, 3, height, width, device=device)
        self.pictures = self.pictures.contiguous(memory_format=torch.channels_last)
        corner = torch.rand(batch, 8, 2, device=device) * torch.tensor([width / 2, height / 2], device=device)
        side = torch.tensor([width / 4, height / 4], device=device)
        self.targets = [
            {'boxes': torch.cat((c, c + side), 1), 'labels': torch.arange(1, 9, device=device)} for c in corner
        ]
        self.mask = torch.randint(0, 21, (batch, height, width), device=device)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)

    def train(self) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        if hasattr(self.model, 'classifier'):
            output = self.model(self.pictures)['out']
            loss = nn.functional.cross_entropy(output.float(), self.mask)
        else:
            loss = sum(self.model(list(self.pictures), self.targets).values())
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def infer(self) -> None:
        """The backbone alone: what follows a random one has no boxes to keep."""
        self.model.eval()
        self.model.backbone(self.pictures)


@contextlib.contextmanager
def operator_of_torchvision() -> Iterator[None]:
    """Upgraded layers compute with torchvision's operator meanwhile."""
    from torchvision.ops import deform_conv2d

    def in_float32(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, *sizes: Any) -> Tensor:
        """As torchvision does it under autocast."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if bias is None else bias.float()
            return deform_conv2d(input.float(), offset.float(), weight.float(), bias, *sizes).to(input.dtype)

    ours = mmdeform_upgrade.layers.deform_conv2d
    mmdeform_upgrade.layers.deform_conv2d = in_float32  # type: ignore[assignment]
    try:
        yield
    finally:
        mmdeform_upgrade.layers.deform_conv2d = ours
