# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""DeepLabV3's head as torchvision has it, which mmseg's ``ASPPHead`` cannot express."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import ASPPHead
from mmseg.models.utils import resize
from torch import Tensor


class ProjectedASPPHead(ASPPHead):
    """``ASPPHead`` with a 1x1 convolution, norm and activation between the branches and the 3x3 ``bottleneck``.

    As in ``torchvision/models/segmentation/deeplabv3.py`` (``ASPP.project``), where mmseg's head has the 3x3
    convolution alone. The settings are ``ASPPHead``'s; torchvision's weights need ``dilations=(1, 12, 24, 36)``.

    Shapes: the last map (N, C_in, H, W) in; class scores (N, classes, H, W) out.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        norms = dict(conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        self.project = ConvModule((len(self.dilations) + 1) * self.channels, self.channels, 1, **norms)
        self.bottleneck = ConvModule(self.channels, self.channels, 3, padding=1, **norms)

    def _forward_feature(self, inputs: list[Tensor]) -> Tensor:
        x = self._transform_inputs(inputs)
        pooled = resize(self.image_pool(x), size=x.shape[2:], mode='bilinear', align_corners=self.align_corners)
        return self.bottleneck(self.project(torch.cat([pooled, *self.aspp_modules(x)], dim=1)))
