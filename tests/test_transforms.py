"""GluonCV's resize, beside OpenCV's own."""

import cv2
import numpy as np
import pytest
from mmengine.registry import TRANSFORMS, init_default_scope


# Sizes as (height, width). One side may stay as it is: that is neither growing nor shrinking.
@pytest.mark.parametrize(
    'size,interpolation',
    [
        ((375, 400), cv2.INTER_CUBIC),
        ((600, 513), cv2.INTER_AREA),
        ((375, 600), cv2.INTER_LINEAR),
        ((600, 375), cv2.INTER_LINEAR),
        ((512, 600), cv2.INTER_LINEAR),
        ((512, 400), cv2.INTER_LINEAR),
    ],
)
def test_the_direction_chooses_the_interpolation(size, interpolation):
    init_default_scope('mmdet')
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    resize = TRANSFORMS.build(dict(type='ResizeByDirection', scale=(512, 512)))
    resize(dict(img=np.zeros((900, 900, 3), np.uint8)))  # leaves nothing behind
    results = resize(dict(img=picture))
    assert np.array_equal(results['img'], cv2.resize(picture, (512, 512), interpolation=interpolation))
    assert results['img_shape'] == (512, 512) and results['keep_ratio'] is False
    assert results['scale_factor'] == (512 / size[1], 512 / size[0])
