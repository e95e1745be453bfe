# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""SSD on ResNet, as in GluonCV's ``ssd_512_resnet50_v1``, and GluonCV's resize: what mmdet lacks for them."""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmdet.datasets.transforms import Resize
from mmdet.models.dense_heads import SSDHead
from mmengine.model import BaseModule
from torch import Tensor, nn


class WideSSDNeck(BaseModule):
    """Extra levels of SSD, each a 1x1 and a strided 3x3 convolution with batch norm, both of the level's full width.

    mmdet's ``SSDNeck`` halves the 1x1's width; GluonCV does not (``gluoncv/nn/feature.py``, FeatureExpander with
    ``reduce_ratio=1``: the width is ``max(min_channels, out)``). Parameter names are ``SSDNeck``'s.

    Args:
        in_channels: channels of the backbone's levels.
        out_channels: channels of the added levels.
        min_channels: least width of a 1x1 convolution.
        norm_cfg: GluonCV's extra batch norms have eps 1e-3.

    Shapes: maps (N, C_i, H_i, W_i) in; the same maps and one of half the last one's size, rounded up, per added level
    out.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: Sequence[int] = (512, 512, 256, 256),
        min_channels: int = 128,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg or dict(type='Xavier', distribution='uniform', layer='Conv2d'))
        norm_cfg = norm_cfg or dict(type='BN', eps=1e-3)
        act_cfg = act_cfg or dict(type='ReLU')
        self.extra_layers = nn.ModuleList()
        width = in_channels[-1]
        for out in out_channels:
            middle = max(min_channels, out)
            self.extra_layers.append(
                nn.Sequential(
                    ConvModule(width, middle, 1, norm_cfg=norm_cfg, act_cfg=act_cfg),
                    ConvModule(middle, out, 3, stride=2, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg),
                )
            )
            width = out

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        outs = list(inputs)
        for layer in self.extra_layers:
            outs.append(layer(outs[-1]))
        return tuple(outs)


class PredictableSSDHead(SSDHead):
    """mmdet's ``SSDHead``, able to predict.

    ``BaseDenseHead._predict_by_feat_single`` reads ``self.loss_cls``, which ``SSDHead`` never sets: AttributeError in
    mmdet 3.3.0 and in OneDL 3.5.1 (mmdetection #11063, #11305, #11780).
    """

    loss_cls = None


class ResizeByDirection(Resize):
    """mmdet's ``Resize`` to a fixed size, with the interpolation that GluonCV chooses by direction.

    GluonCV evaluates detectors with ``imresize(..., interp=9)`` (``gluoncv/data/transforms/presets/ssd.py``): cubic
    where both sides grow, area where both shrink, linear otherwise.

    Args:
        scale: (width, height) in pixels; the aspect ratio is not kept.
    """

    def __init__(self, scale: tuple[int, int]):
        super().__init__(scale=tuple(scale), keep_ratio=False)

    def _resize_img(self, results: dict) -> None:
        height, width = results['img'].shape[:2]
        new_width, new_height = results['scale']
        if new_width > width and new_height > height:
            self.interpolation = 'bicubic'
        elif new_width < width and new_height < height:
            self.interpolation = 'area'
        else:
            self.interpolation = 'bilinear'
        super()._resize_img(results)
