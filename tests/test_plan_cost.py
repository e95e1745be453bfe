"""What a plan says of an upgrade's cost."""

import pytest
from mmdet.models import SingleStageDetector
from mmengine.config import Config
from mmengine.registry import MODELS

from mmdeform_upgrade.config import read_config, upgrade_config
from mmdeform_upgrade.mm.cost import describe_cost, measure_cost, picture_size
from mmdeform_upgrade.mm.preflight import build_network

from .conftest import ROOT

CONFIG = ROOT / 'benchmarks/demo/configs/fcn_r18_shapes.py'


@pytest.fixture
def pair():
    baseline = Config.fromfile(CONFIG)
    baseline.train_dataloader.dataset.pipeline.insert(2, dict(type='Resize', scale=(96, 64)))
    return baseline, upgrade_config(baseline, load_from='baseline.pth', targets='last:3', max_iters=300)


def test_maps_and_multiplications_are_those_of_the_configs_pictures(pair):
    baseline, upgraded = pair
    cost = measure_cost(baseline, build_network(upgraded))
    assert cost.size == cost.timed == (64, 96)
    assert cost.maps == {(8, 12): 3}
    before, after = cost.flops
    # A layer's offset branch, and four corners a tap and channel: (2*9 * 64*9 + 4 * 64*9) multiplications a position.
    assert after - before == 3 * 8 * 12 * (18 * 64 * 9 + 4 * 64 * 9)
    assert cost.step[0] > 0 and cost.step[1] > 0
    assert "times the baseline's" in str(cost) and 'maps 8x12 (3)' in str(cost)


@pytest.mark.parametrize(
    'pipeline,size',
    [
        ([], (512, 512)),
        ([dict(type='Resize', scale=(1333, 800))], (800, 1312)),
        ([dict(type='RandomChoiceResize', scale=[(320, 160), (640, 320)])], (160, 320)),
        ([dict(type='RandomResize', scale=(2048, 512)), dict(type='RandomCrop', crop_size=(512, 1024))], (512, 1024)),
        ([dict(type='Resize', scale=4096)], (1344, 1344)),
    ],
)
def test_the_size_is_that_of_the_pipelines_last_word(pipeline, size):
    wrapped = dict(type='RepeatDataset', dataset=dict(type='VOCDataset', pipeline=pipeline))
    assert picture_size(dict(train_dataloader=dict(dataset=wrapped))) == size


def test_a_network_that_cannot_be_run_alone_does_not_stop_the_plan(pair):
    baseline, upgraded = pair
    baseline.model.backbone.depth = 17
    assert describe_cost(baseline, build_network(upgraded)).startswith('cost: not measured (')


@pytest.mark.parametrize('targets,missed', [('last:3', [8, 16]), ('in:layer3', [8]), ('in:layer2', [])])
def test_levels_that_no_upgraded_layer_has_a_part_in_are_named(targets, missed):
    config = Config.fromfile(ROOT / 'benchmarks/demo/configs/ssd96_r18_shapes.py')
    upgraded = upgrade_config(config, load_from='baseline.pth', targets=targets)
    cost = measure_cost(config, build_network(upgraded))
    assert cost.missed == missed
    assert ('of stride 8, 16: to gain' in str(cost)) == (missed == [8, 16])


def test_levels_that_an_encoder_mixes_are_not_named():
    config = read_config('mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py')
    shallow = dict(num_layers=1)
    backbone = dict(depth=18, init_cfg=None)
    model = dict(backbone=backbone, neck=dict(in_channels=[128, 256, 512]), encoder=shallow, decoder=shallow)
    config.merge_from_dict(dict(model=model))
    config.train_dataloader.dataset.pipeline = [dict(type='Resize', scale=(64, 64))]
    cost = measure_cost(config, build_network(upgrade_config(config, load_from='baseline.pth')))
    assert cost.maps == {(2, 2): 3} and cost.missed == []


def test_layers_of_a_head_are_run_and_priced():
    config = Config.fromfile(ROOT / 'benchmarks/demo/configs/ssd96_r18_shapes.py')
    config.train_dataloader.dataset.pipeline = [dict(type='Resize', scale=(96, 96))]
    upgraded = upgrade_config(config, load_from='baseline.pth', targets='last:1', part='bbox_head')
    cost = measure_cost(config, build_network(upgraded))
    assert sum(cost.maps.values()) == 1 and cost.flops[1] > cost.flops[0]
    assert len(cost.missed) == 3 and 'neck and heads' in str(cost)


def test_layers_that_run_in_training_alone_are_no_upgrade():
    config = Config.fromfile(ROOT / 'benchmarks/demo/configs/deeplabv3_r18_shapes.py')
    upgraded = upgrade_config(config, load_from='baseline.pth', targets='last:1', part='auxiliary_head')
    assert 'none of the upgraded layers runs in inference' in describe_cost(config, build_network(upgraded))


@MODELS.register_module(force=True)
class SilentDetector(SingleStageDetector):
    """Its ``train`` returns nothing, as that of mmdet's distillation."""

    def train(self, mode=True):
        super().train(mode)


def test_a_network_whose_train_returns_nothing_is_priced():
    config = Config.fromfile(ROOT / 'benchmarks/demo/configs/ssd96_r18_shapes.py')
    config.model.type = 'SilentDetector'
    assert describe_cost(config, build_network(upgrade_config(config, load_from='baseline.pth'))).startswith(
        'at 512x512'
    )
