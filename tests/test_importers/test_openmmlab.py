"""Checkpoints of older OpenMMLab releases, and of today's."""

import pytest
import torch

from mmdeform_upgrade.checkpoint import fit_baseline, import_checkpoint, load_baseline
from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.importers import OWN_NAMES, dataset_meta, import_state_dict

from . import foreign
from .test_torchvision import everything_is_accounted_for


def _empty(shapes):
    return {name: torch.empty(shape, device='meta') for name, shape in shapes.items()}


def test_ssd_before_2_14_loads_strictly(stock):
    source = foreign.random_of(foreign.old_ssd(80))
    imported = import_state_dict(source, dict(mmdet_version='2.7.0', CLASSES=('a', 'b')))
    everything_is_accounted_for(imported, source)
    assert not imported.changed and not imported.dropped
    model = stock('ssd/ssd300_coco.py')
    model.load_state_dict(fit_baseline(imported, model).state_dict, strict=True)
    assert torch.equal(model.neck.extra_layers[3][1].conv.bias, source['backbone.extra.7.bias'])


def test_a_pure_rpn_loads_strictly(stock):
    model = stock('rpn/rpn_r50_fpn_1x_coco.py')
    source = {name.replace('bbox_head.', 'rpn_head.'): value for name, value in model.state_dict().items()}
    assert fit_baseline(import_state_dict(source), model).state_dict.keys() == model.state_dict().keys()
    plain = import_state_dict(model.state_dict(), network=model.state_dict())
    assert plain.format == OWN_NAMES


def test_a_faster_rcnn_keeps_its_rpn(stock):
    names = stock('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').state_dict()
    imported = import_state_dict(names)
    assert imported.format == OWN_NAMES and imported.state_dict.keys() == names.keys()


def test_todays_checkpoints_pass_untouched(tiny_baseline):
    from mmdeform_upgrade.readers import read_checkpoint

    saved = read_checkpoint(tiny_baseline)
    imported = import_state_dict(saved['state_dict'], saved['meta'])
    assert imported.format == OWN_NAMES and not imported.changed and not imported.dropped
    assert all(imported.state_dict[name] is value for name, value in saved['state_dict'].items())
    assert list(imported.state_dict) == list(saved['state_dict']) == list(load_baseline(tiny_baseline))


def test_classes_of_version_two_become_dataset_meta():
    meta = dict(mmdet_version='2.25.0', CLASSES=('a', 'b'), PALETTE=[[0, 0, 0]], epoch=12)
    assert dataset_meta(meta) == dict(classes=('a', 'b'), palette=[[0, 0, 0]])
    imported = import_state_dict({'backbone.conv1.weight': torch.ones(1)}, meta)
    assert imported.classes == ('a', 'b') and imported.format == 'MMDetection 2 or MMSegmentation 0'
    assert str(imported) == 'MMDetection 2 or MMSegmentation 0: 1 tensors, all as they are'
    today = dict(dataset_meta=dict(classes=('x',)), CLASSES=('y',))
    assert dataset_meta(today) == dict(classes=('x',)) and dataset_meta(None) == {}


def test_the_copies_that_version_ones_ema_hook_left_are_left_out():
    weights = {
        'backbone.conv1.weight': torch.ones(1),
        'ema_backbone_conv1_weight': torch.zeros(1),
        'ema_rate': torch.ones(1),
    }
    found = import_checkpoint({'state_dict': weights, 'meta': dict(mmdet_version='2.25.0')}).state_dict
    assert found == {'backbone.conv1.weight': torch.ones(1), 'ema_rate': torch.ones(1)}


@pytest.mark.parametrize(
    'source,meta',
    [
        ({'bbox_head.fc_cls.weight': (81, 1024)}, None),
        ({'bbox_head.2.fc_cls.weight': (81, 1024)}, None),
        ({'backbone.conv1.weight': (64, 3, 7, 7)}, dict(mmdet_version='1.2.0+c3f5')),
        ({'backbone.conv1.weight': (64, 3, 7, 7)}, dict(mmdet_version='0.6.0')),
    ],
)
def test_version_one_is_refused_with_the_reason(source, meta):
    with pytest.raises(CheckpointError, match='MMDetection 1 or older, which had the background as its first class'):
        import_state_dict(_empty(source), meta)
