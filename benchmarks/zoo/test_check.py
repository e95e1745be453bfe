"""What the check of one config finds and says, on configs made to order."""

import json
import os
import re
from contextlib import nullcontext

import pytest
from mmengine.config import Config

from benchmarks.zoo import configs, network, reasons
from benchmarks.zoo.check import check_config
from benchmarks.zoo.summary import passed, summary
from mmdeform_upgrade import ZeroOffsetDCN
from tests.conftest import ROOT

from .conftest import Whole, backbone


def test_pure_python_configs_are_checked_like_others(zoo):
    record = check_config(
        zoo(
            text="""from mmdet.models.backbones import ResNet
from mmdet.models.necks import FPN
model = dict(type='ZooWhole',
             backbone=dict(type=ResNet, depth=18, base_channels=8, init_cfg=dict(type='Pretrained', checkpoint='x')),
             neck=dict(type=FPN, in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5))
"""
        )
    )
    assert passed(record) and record['backbone'] == 'ResNet' and record['parts'][0]['layers'][-1] == 'layer4.1.conv2'


@pytest.mark.parametrize(
    'given,reason,detail',
    [
        (dict(text='lr = 1\n'), reasons.NO_MODEL, ''),
        (
            dict(text="custom_imports = dict(imports=['pack_age.models'], allow_failed_imports=False)\n"),
            reasons.PACKAGE,
            'pack_age',
        ),
        (dict(text="_base_ = './not_there.py'\n"), reasons.STOCK, r"FileNotFoundError: .*not_there\.py'"),
        (
            dict(text="model = dict(type='NotThere', backbone=dict(type='NeitherThis'))\n"),
            reasons.STOCK,
            'KeyError: .*NotThere is not in the',
        ),
        (dict(text="model = dict(type='ZooWhole')\n"), reasons.NO_PICTURE, 'ZooWhole'),
        (dict(backbone=backbone('download')), reasons.DOWNLOAD, 'NetworkRefused: example.com'),
        (dict(backbone=backbone('broken')), reasons.STOCK, 'this backbone takes no picture'),
        (dict(backbone=backbone('constant')), reasons.STOCK, 'output 0 of 1 is constant'),
        (dict(backbone=backbone('no convolutions')), reasons.NO_CONVS, 'Picture'),
        (dict(backbone=backbone('frozen')), reasons.FROZEN, 'Picture'),
        (
            dict(backbone=dict(type='mmdet.ResNet', depth=18, base_channels=8, conv_cfg=dict(type='ConvWS'))),
            reasons.SUBCLASSES,
            'ConvWS2d x17',
        ),
        pytest.param(
            dict(
                backbone=dict(
                    type='mmdet.ResNet',
                    depth=50,
                    num_stages=1,
                    out_indices=(0,),
                    strides=(1,),
                    dilations=(1,),
                    base_channels=8,
                    deep_stem=False,
                    dcn=dict(type='DCN'),
                    stage_with_dcn=(True,),
                    frozen_stages=0,
                )
            ),
            reasons.DEFORMABLE,
            'DeformConv2dPack x3',
            marks=pytest.mark.compiled_mmcv,
        ),
        (
            dict(backbone=backbone('idle')),
            reasons.OURS,
            'moved offsets change the outputs by 0 only; no upgraded layer',
        ),
    ],
)
def test_a_config_that_is_not_upgraded_gets_its_reason(zoo, given, reason, detail):
    record = check_config(zoo(**given))
    assert record.get('reason') == reason and re.search(detail, record.get('detail', '')), record
    assert not record.get('parts') and os.fspath(ROOT) not in json.dumps(record)


def test_necks_are_tried_where_a_backbone_has_fewer_than_three_convolutions(zoo):
    record = check_config(zoo(backbone=backbone(), neck=dict(type='ZooNeck')))
    assert passed(record) and [part['layers'] for part in record['parts']] == [['convs.0', 'convs.2'], ['conv']]
    record = check_config(zoo(backbone=backbone('no convolutions'), neck=dict(type='ZooNeck')))
    assert record['reason'] == reasons.NO_CONVS and [part['part'] for part in record['parts']] == ['neck']


def test_backbone_and_neck_are_upgraded_alone_where_the_rest_cannot_be_built(zoo):
    model = dict(
        type='NotThere',
        detector=dict(type='NorThis', backbone=backbone(), neck=dict(type='ZooNeck')),
        reid=dict(type='NorThis', backbone=dict(type='NeitherThis')),
    )
    record = check_config(zoo(text=f'model = {model}\n'))
    assert passed(record), record.get('detail')
    assert 'NotThere is not in the' in record['alone']
    assert [part['part'] for part in record['parts']] == ['detector.backbone', 'detector.neck']
    assert '0 upgraded, with exactly the original outputs**; 1 upgraded likewise but without' in summary([record])


def test_a_neck_that_no_cpu_runs_is_left_out_and_named(zoo):
    record = check_config(zoo(backbone=backbone(), neck=dict(type='ZooNeck', works=False)))
    assert passed(record) and 'implementation for device cpu not found' in record['neck']


def test_a_detector_that_its_wrapper_builds_twice_is_upgraded_and_compared_twice(zoo):
    detector = dict(type='ZooWhole', backbone=backbone(), neck=dict(type='ZooNeck'))
    record = check_config(zoo(detector=detector))
    assert passed(record), record
    assert [(part['part'], part['of']) for part in record['parts']] == [('detector.backbone', 4), ('detector.neck', 2)]
    model = Whole(detector=detector)
    assert network.places(model, 'detector.backbone') == ['student.backbone', 'teacher.backbone']


@pytest.mark.parametrize(
    'path,message',
    [
        (nullcontext, r'the outputs differ by 0\.0\d+; on the deformable path the outputs differ by'),
        (network.deformable_path, 'on the deformable path the outputs differ by'),
    ],
)
def test_a_difference_is_a_failure_of_ours(zoo, monkeypatch, path, message):
    """A layer that is wrong everywhere, and one that is wrong only where it samples."""
    right = ZeroOffsetDCN.forward

    def wrong(self, x):
        from mmdeform_upgrade import layers

        sampling = layers.deform_conv2d.__name__ == 'sampled'
        return right(self, x) * (1.01 if path is nullcontext or sampling else 1)

    monkeypatch.setattr(ZeroOffsetDCN, 'forward', wrong)
    record = check_config(zoo(backbone=backbone()))
    assert record['reason'] == reasons.OURS
    assert re.search(message, record['detail']), record
    assert ('; on the' in record['detail']) == (path is nullcontext)


def test_pictures_have_the_channels_that_the_backbone_takes(zoo):
    assert passed(check_config(zoo(backbone=dict(backbone(), in_channels=6))))


def test_only_downloads_are_taken_out_of_a_model():
    model = dict(
        pretrained='torchvision://resnet50',
        depth=50,
        pretrained_size=2,
        init_cfg=[dict(type='Pretrained', checkpoint='x'), dict(type='Normal', std=1)],
        neck=dict(init_cfg=dict(type='Pretrained', checkpoint='x'), convs=[dict(init_cfg=dict(type='Xavier'))]),
    )
    assert configs.without_downloads(Config(dict(model=model)).model) == dict(
        pretrained=None,
        depth=50,
        pretrained_size=2,
        init_cfg=[dict(type='Normal', std=1)],
        neck=dict(convs=[dict(init_cfg=dict(type='Xavier'))]),
    )


def test_a_component_inside_another_is_no_part_of_its_own():
    model = dict(
        backbone=dict(type='ICNet', backbone=dict(type='ResNet')),
        reid=dict(backbone=dict(type='ResNet')),
        train_cfg=dict(backbone=1),
        image_encoder=dict(type='ViT'),
    )
    assert configs.parts_called(model, configs.BACKBONES) == ['backbone', 'image_encoder', 'reid.backbone']
