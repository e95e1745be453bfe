"""SSD on ResNet-50 against the published facts of GluonCV's ssd_512_resnet50_v1_voc."""

import numpy as np
import pytest
import torch
from mmengine.config import Config

from .conftest import ROOT, build


@pytest.fixture(scope='module')
def model():
    cfg = Config.fromfile(ROOT / 'configs/ssd/ssd512_r50_240e_voc0712.py')
    cfg.model.backbone.init_cfg = None
    return build(cfg).eval()


def _gluon_anchors():
    """gluoncv/model_zoo/ssd/anchor.py, from its description: centre format, pixels."""
    sizes = [51.2, 102.4, 189.4, 276.4, 363.52, 450.6, 492]
    ratios = [[1, 2, 0.5]] + [[1, 2, 0.5, 3, 1 / 3]] * 3 + [[1, 2, 0.5]] * 2
    for level, (side, step) in enumerate(zip([32, 16, 8, 4, 2, 1], [16, 32, 64, 128, 256, 512], strict=True)):
        s0, s1 = sizes[level], np.sqrt(sizes[level] * sizes[level + 1])
        shapes = [(s0, s0), (s1, s1)] + [(s0 * np.sqrt(r), s0 / np.sqrt(r)) for r in ratios[level][1:]]
        for y in range(side):
            for x in range(side):
                yield from (((x + 0.5) * step, (y + 0.5) * step, w, h) for w, h in shapes)


def test_anchors_are_gluoncvs_in_the_same_order(model):
    expected = np.array(list(_gluon_anchors()))
    sizes = [(s, s) for s in (32, 16, 8, 4, 2, 1)]
    boxes = torch.cat(model.bbox_head.prior_generator.grid_priors(sizes, device='cpu')).numpy()
    centres = np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])
    assert len(expected) == 6132
    assert np.abs(centres - expected).max() < 1e-3


def test_levels_channels_and_widths(model):
    features = model.extract_feat(torch.zeros(1, 3, 512, 512))
    assert [tuple(f.shape[1:]) for f in features] == [
        (1024, 32, 32),
        (2048, 16, 16),
        (512, 8, 8),
        (512, 4, 4),
        (256, 2, 2),
        (256, 1, 1),
    ]
    widths = [(level[0].conv.out_channels, level[1].conv.out_channels) for level in model.neck.extra_layers]
    assert widths == [(512, 512), (512, 512), (256, 256), (256, 256)], 'the 1x1 is as wide as its 3x3'
    assert all(layer.bn.eps == 1e-3 and layer.conv.bias is None for level in model.neck.extra_layers for layer in level)
    assert model.backbone.layer2[0].conv1.stride == (2, 2), "the stride is on the first 1x1: style='caffe'"


def test_head_has_a_class_for_the_background_and_four_numbers_a_box(model):
    head = model.bbox_head
    assert [c[0].out_channels for c in head.cls_convs] == [a * 21 for a in (4, 6, 6, 6, 4, 4)]
    assert [c[0].out_channels for c in head.reg_convs] == [a * 4 for a in (4, 6, 6, 6, 4, 4)]


def _samples(count):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for _ in range(count):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(512, 512),
                ori_shape=(512, 512),
                scale_factor=(1.0, 1.0),
                batch_input_shape=(512, 512),
                pad_shape=(512, 512),
            )
        )
        sample.gt_instances = InstanceData(bboxes=torch.tensor([[50.0, 60.0, 200.0, 220.0]]), labels=torch.tensor([3]))
        samples.append(sample)
    return samples


# Trap: SSDHead.predict raises AttributeError: loss_cls in mmdet 3.3.0 and OneDL 3.5.1.
def test_head_predicts_and_trains(model):
    x = torch.randn(2, 3, 512, 512)
    with torch.no_grad():
        predictions = model(x, _samples(2), mode='predict')
    assert len(predictions) == 2 and len(predictions[0].pred_instances) <= 100
    losses = model(x, _samples(2), mode='loss')
    total = sum(value if isinstance(value, torch.Tensor) else sum(value) for value in losses.values())
    assert set(losses) == {'loss_cls', 'loss_bbox'} and torch.isfinite(total)
