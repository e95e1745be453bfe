# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""mmseg's networks of the comparison, as plain modules from pictures to logits."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import Tensor, nn

import mmdeform_upgrade  # noqa: F401  before mmseg: supplies mmcv's operators where they are not compiled

MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)  # BGR


def config(network: str, classes: int) -> dict:
    """The mmseg config of ``'r18w32s2'`` (ResNet-18, 32 channels, two stages), ``'r50'`` or ``'r50s3os16'``.

    Stages after the second are dilated, so that networks predict at an eighth of the picture's size, as mmseg's ``-d8``
    configs do; at a sixteenth with ``os16``. The head is one 1x1 convolution.
    """
    depth, width, stages, sixteenth = re.fullmatch(r'r(18|50)(?:w(\d+))?(?:s(\d))?(os16)?', network).groups()
    depth, width, stages = int(depth), int(width or 64), int(stages or 4)
    norm = dict(type='BN', requires_grad=True)
    backbone = dict(
        type='ResNet',
        depth=depth,
        base_channels=width,
        num_stages=stages,
        strides=(1, 2, 2 if sixteenth else 1, 1)[:stages],
        dilations=(1, 1, 1 if sixteenth else 2, 2 if sixteenth else 4)[:stages],
        out_indices=(stages - 1,),
        norm_cfg=norm,
        style='caffe' if depth == 50 else 'pytorch',
    )
    return dict(
        type='EncoderDecoder',
        backbone=backbone,
        decode_head=dict(
            type='FCNHead',
            in_channels=channels(backbone),
            in_index=0,
            channels=channels(backbone),
            num_convs=0,
            concat_input=False,
            dropout_ratio=0.1,
            num_classes=classes,
            norm_cfg=norm,
            align_corners=False,
        ),
    )


def channels(backbone: dict) -> int:
    """Channels of the last stage of mmdet's or mmseg's ResNet."""
    return backbone['base_channels'] * 2 ** (backbone['num_stages'] - 1) * (4 if backbone['depth'] == 50 else 1)


def pretrained(network: str) -> bool:
    """Whether it starts from ImageNet's weights, as every ResNet-50 does."""
    return 'r50' in network


def built(settings: dict) -> Any:
    """What a framework builds of its settings, initialised."""
    logging.getLogger('mmengine').setLevel(logging.WARNING)  # a line for each parameter that is initialised
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    network = MODELS.build(settings)
    network.init_weights()
    return network


class Network(nn.Module):
    """A backbone for uint8 pictures, (N, 3, H, W); what follows it is the subclasses'."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: str, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        std = (1.0, 1.0, 1.0) if pretrained(network) else STD
        self.register_buffer('mean', torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalized(self, pictures: Tensor) -> Tensor:
        return (pictures.float() - self.mean) / self.std


class Segmentor(Network):
    """mmseg's backbone and head, from uint8 pictures (N, 3, H, W) to logits (N, classes, H, W)."""

    def __init__(self, network: str, classes: int):
        parts = built(dict(config(network, classes), _scope_='mmseg'))
        super().__init__(network, parts.backbone)
        self.decode_head = parts.decode_head
        self.merged = [[label] for label in range(classes)]

    def merge(self, classes: Sequence[int]) -> None:
        """Predict what each of its classes becomes: probabilities of classes that become one are summed."""
        self.merged = [[i for i, c in enumerate(classes) if c == label] for label in range(max(classes) + 1)]

    def forward(self, pictures: Tensor) -> Tensor:
        logits = self.decode_head(self.backbone(self.normalized(pictures)))
        logits = F.interpolate(logits.float(), size=pictures.shape[2:], mode='bilinear', align_corners=False)
        if all(len(labels) == 1 for labels in self.merged):
            return logits
        return torch.stack([logits[:, labels].logsumexp(1) for labels in self.merged], 1)


def build(
    kind: Callable[[str, int], nn.Module], network: str, classes: int, seed: int, weights: Path | None = None
) -> nn.Module:
    """A network of its own initialisation; ``weights`` are those of a pretrained backbone."""
    torch.manual_seed(seed)
    model = kind(network, classes)
    if weights is not None:
        held = torch.load(weights, weights_only=True)
        held = held.get('state_dict', held)
        missing = model.backbone.load_state_dict({key: value.float() for key, value in held.items()}, strict=False)
        assert not missing.missing_keys, missing.missing_keys
    return model
