"""Whole detectors give the same with either kind of operators."""

import pytest

from .mmcv_ops import build, compare, predict, train

DETECTORS = ('SSD300 VGG-16', 'RetinaNet R50-FPN', 'RTMDet-tiny', 'Faster R-CNN R50-FPN', 'Mask R-CNN R50-FPN')


@pytest.mark.compiled_mmcv
@pytest.mark.parametrize('name', DETECTORS)
def test_detections_losses_and_gradients_are_the_same(name):
    model = build(name)
    apart, (boxes, *_), *_ = compare(model, predict, (320, 320))
    assert len(boxes) >= 50 and apart <= (1e-4 if 'R-CNN' in name else 0)
    if 'R-CNN' in name:
        apart, *_, (in_operators, _) = compare(model, train, (128, 160))
        assert in_operators > 0 and apart < 5e-3  # rounding flips a ReLU, or a pixel of a mask's target
