# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Data transforms that mmdet lacks."""

from __future__ import annotations

from typing import Tuple

from mmdet.datasets.transforms import Resize


class ResizeByDirection(Resize):
    """mmdet's ``Resize`` to a fixed size, with the interpolation that GluonCV chooses by direction.

    GluonCV evaluates detectors with ``imresize(..., interp=9)`` (``gluoncv/data/transforms/presets/ssd.py``): cubic
    where both sides grow, area where both shrink, linear otherwise.

    Args:
        scale: (width, height) in pixels; the aspect ratio is not kept.
    """

    def __init__(self, scale: Tuple[int, int]):
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
