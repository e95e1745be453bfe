# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Reference lines for a map that is known, without training: pictures rectified, and offsets computed from the map."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdeform_upgrade import deform_conv2d

from .testbeds import TESTBEDS, Geometry


class Rectified:
    """The untouched baseline on pictures brought back to its own geometry, its logits brought to theirs.

    Args:
        model: the baseline.
        bed: name of the test bed.
        geometry: what the camera does.
        split: whose pictures are predicted.
    """

    def __init__(self, model: nn.Module, bed: str, geometry: Geometry, split: str):
        self.model, self.geometry, self.split = model, geometry, split
        self.size = TESTBEDS[bed].target
        home = TESTBEDS[bed].home
        self.canvas = tuple(2 * side for side in home) if bed == 'shapes' else home

    def __call__(self, pictures: Tensor, rows: slice) -> Tensor:
        views = [self.geometry.view(self.size, self.split, rows.start + i) for i in range(len(pictures))]
        device = pictures.device
        back = _grid([v.to_picture(_centres(self.canvas)) for v in views], self.size, device)
        mean = pictures.new_tensor([104, 117, 124]).view(1, 3, 1, 1).float()
        rectified = F.grid_sample(pictures.float() - mean, back, align_corners=False) + mean
        logits = self.model(rectified)
        forth = _grid([v.to_scene(_centres(self.size)) for v in views], self.canvas, device)
        return F.grid_sample(logits, forth, align_corners=False, padding_mode='border')


class ComputedOffsets:
    """The untouched baseline whose taps are moved to where the map has put what they used to see (RectConv's idea).

    A tap at ``d`` pixels of the scene is found at the inverse of the map's Jacobian times ``d``. All 3x3 convolutions of
    the backbone are moved.
    """

    def __init__(self, model: nn.Module, bed: str, geometry: Geometry, split: str):
        self.model, self.geometry, self.split = model, geometry, split
        self.size = TESTBEDS[bed].target
        convs = (m for m in model.backbone.modules() if isinstance(m, nn.Conv2d))
        self.convs = [conv for conv in convs if conv.kernel_size == (3, 3)]

    def __call__(self, pictures: Tensor, rows: slice) -> Tensor:
        views = [self.geometry.view(self.size, self.split, rows.start + i) for i in range(len(pictures))]
        fields = np.stack([np.linalg.inv(_regular(v.jacobian(self.size, 4))) for v in views])
        field = torch.from_numpy(fields.astype(np.float32)).to(pictures.device)  # (N, h, w, 2, 2), rows x, y
        hooks = [self._moved(conv, field) for conv in self.convs]
        try:
            return self.model(pictures)
        finally:
            for conv in hooks:
                del conv.forward

    def _moved(self, conv: nn.Conv2d, field: Tensor) -> nn.Module:
        def forward(input: Tensor) -> Tensor:
            out = [-(-side // stride) for side, stride in zip(input.shape[2:], conv.stride, strict=True)]
            N = len(input)
            local = F.interpolate(field.flatten(3).permute(0, 3, 1, 2), size=out, mode='bilinear', align_corners=False)
            local = local.view(N, 2, 2, *out) - torch.eye(2, device=input.device).view(1, 2, 2, 1, 1)
            taps = torch.stack(
                torch.meshgrid(torch.arange(-1.0, 2), torch.arange(-1.0, 2), indexing='ij'), dim=-1
            ).view(9, 2)  # (y, x)
            taps = taps.to(input.device) * torch.tensor(conv.dilation, device=input.device)
            dx = local[:, 0, 0, None] * taps[:, 1].view(1, 9, 1, 1) + local[:, 0, 1, None] * taps[:, 0].view(1, 9, 1, 1)
            dy = local[:, 1, 0, None] * taps[:, 1].view(1, 9, 1, 1) + local[:, 1, 1, None] * taps[:, 0].view(1, 9, 1, 1)
            offset = torch.stack((dy, dx), dim=2).flatten(1, 2)  # (N, 2K, Ho, Wo)
            return deform_conv2d(input, offset, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)

        conv.forward = forward  # type: ignore[method-assign]
        return conv


def _regular(jacobian: np.ndarray) -> np.ndarray:
    """Without the rim of a lens, where the scene runs away: singular values within 1/4 and 4."""
    left, values, right = np.linalg.svd(jacobian)
    return left @ (np.clip(values, 0.25, 4)[..., None] * right)


def _centres(size: tuple[int, ...]) -> np.ndarray:
    y, x = (np.arange(side) + 0.5 - side / 2 for side in size)
    return np.stack(np.meshgrid(x, y), axis=-1)


def _grid(points: list[np.ndarray], size: tuple[int, ...], device: torch.device) -> Tensor:
    """Positions from the centre of a picture of ``size`` as ``grid_sample`` has them."""
    half = np.array([size[1] / 2, size[0] / 2])
    return torch.from_numpy((np.stack(points) / half).clip(-9, 9).astype(np.float32)).to(device)
