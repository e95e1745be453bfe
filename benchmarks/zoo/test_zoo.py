"""The zoo sweep: a sample of it, and what it says of configs that it cannot check."""

import json
import os
import re
import time
import urllib.request
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from benchmarks.zoo import configs, network, reasons
from benchmarks.zoo.check import check_config, check_duplicate
from benchmarks.zoo.summary import passed, summary
from benchmarks.zoo.sweep import plan, read_records, run_tasks, sweep
from benchmarks.zoo.worker import Worker
from mmdeform_upgrade import ZeroOffsetDCN
from mmdeform_upgrade.errors import DataError
from tests.conftest import ROOT, run_tool

RESULTS = ROOT / 'benchmarks/zoo/zoo.jsonl'
RECORDS = read_records(RESULTS)
SEED = 7
CHEAP = [record for record in RECORDS if passed(record) and record['seconds'] < 6]  # the others are the sweep's
SAMPLE = configs.choose(CHEAP, 40, SEED)


@pytest.mark.parametrize('name', SAMPLE)
def test_configs_of_the_frameworks_keep_all_outputs_when_upgraded(name):
    if not configs.config_path(name).is_file():
        pytest.skip('these versions of the frameworks have no such config')
    record = check_config(name)
    assert passed(record), record
    assert all((part['same'] == 0 and part['sampled'] < 1e-5) or part['sampled64'] < 1e-10 for part in record['parts'])


def test_the_sample_is_spread_over_the_backbone_types():
    types = {record['config']: record['backbone'] for record in CHEAP}
    counts = Counter(types[name] for name in SAMPLE)
    assert len(SAMPLE) == 40 and len(counts) == min(40, len(set(types.values()))), counts
    assert {'ResNet', 'ResNetV1c', 'HRNet', 'RegNet', 'MobileNetV2', 'CSPDarknet', 'SwinTransformer'} <= set(counts)


def test_the_results_cover_every_config_once_and_have_no_failure_of_ours():
    names = [record['config'] for record in RECORDS]
    assert len(set(names)) == len(names)
    assert not [record for record in RECORDS if record.get('reason') in (reasons.OURS, reasons.TOO_LONG)]
    for record in RECORDS:
        assert record.get('reason') in (None, *reasons.MEANING) and (record.get('parts') or not passed(record))
    if 'mmdet 3.5.1, mmseg 1.4.2' in _table():  # the versions that they were made with
        from mmdet import __version__ as det
        from mmseg import __version__ as seg

        if (det, seg) == ('3.5.1', '1.4.2'):
            assert sorted(names) == sorted(configs.config_names())


def _table():
    return (ROOT / 'benchmarks/zoo/zoo.md').read_text(encoding='utf8')


def test_the_table_is_that_of_the_results():
    def without_versions(text):
        return [line for line in text.splitlines() if not line.startswith('mmdet ')]

    assert without_versions(summary(RECORDS)) == without_versions(_table())
    assert RESULTS.stat().st_size < 400 * 1024


class Picture(nn.Module):
    """A backbone made to order."""

    def __init__(self, kind='plain', in_channels=3):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
        )
        self.kind = kind
        if kind == 'no convolutions':
            self.convs = nn.Conv2d(3, 8, 1)
        elif kind == 'frozen':
            self.convs.requires_grad_(False)
        elif kind == 'download':
            urllib.request.urlopen('http://example.com/weights.pth')
        elif kind == 'idle':
            self.spare = nn.ModuleList(nn.Conv2d(8, 8, 3) for _ in range(3))

    def forward(self, x):
        if self.kind == 'broken':
            raise ValueError('this backbone takes no picture')
        if self.kind == 'constant':
            return (torch.zeros(1, 8, 4, 4),)
        return (self.convs(x),)


class Neck(nn.Module):
    def __init__(self, works=True):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)
        self.works = works

    def forward(self, maps):
        if not self.works:
            raise RuntimeError('resample_forward_impl: implementation for device cpu not found.')
        return [self.conv(x) for x in maps]


class Whole(nn.Module):
    """A detector as far as the sweep looks at one; ``detector`` is built twice, as by a teacher and its student."""

    def __init__(self, backbone=None, neck=None, detector=None):
        super().__init__()
        for name, cfg in dict(backbone=backbone, neck=neck, student=detector, teacher=detector).items():
            if cfg:
                setattr(self, name, MODELS.build(cfg))


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """Writes a config by its model into a zoo of its own and returns its name."""
    for module in (Picture, Neck, Whole):
        monkeypatch.setitem(MODELS._module_dict, f'Zoo{module.__name__}', module)
    monkeypatch.setattr(configs, 'config_root', lambda library: tmp_path)

    def write(text='', **model):
        name = f'made{len(list(tmp_path.iterdir()))}.py'
        (tmp_path / name).write_text(text or f'model = {dict(type="ZooWhole", **model)}\n')
        return f'mmdet/{name}'

    return write


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


def _backbone(kind='plain'):
    return dict(type='ZooPicture', kind=kind)


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
        (dict(backbone=_backbone('download')), reasons.DOWNLOAD, 'NetworkRefused: example.com'),
        (dict(backbone=_backbone('broken')), reasons.STOCK, 'this backbone takes no picture'),
        (dict(backbone=_backbone('constant')), reasons.STOCK, 'output 0 of 1 is constant'),
        (dict(backbone=_backbone('no convolutions')), reasons.NO_CONVS, 'Picture'),
        (dict(backbone=_backbone('frozen')), reasons.FROZEN, 'Picture'),
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
            dict(backbone=_backbone('idle')),
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
    record = check_config(zoo(backbone=_backbone(), neck=dict(type='ZooNeck')))
    assert passed(record) and [part['layers'] for part in record['parts']] == [['convs.0', 'convs.2'], ['conv']]
    record = check_config(zoo(backbone=_backbone('no convolutions'), neck=dict(type='ZooNeck')))
    assert record['reason'] == reasons.NO_CONVS and [part['part'] for part in record['parts']] == ['neck']


def test_backbone_and_neck_are_upgraded_alone_where_the_rest_cannot_be_built(zoo):
    model = dict(
        type='NotThere',
        detector=dict(type='NorThis', backbone=_backbone(), neck=dict(type='ZooNeck')),
        reid=dict(type='NorThis', backbone=dict(type='NeitherThis')),
    )
    record = check_config(zoo(text=f'model = {model}\n'))
    assert passed(record), record.get('detail')
    assert 'NotThere is not in the' in record['alone']
    assert [part['part'] for part in record['parts']] == ['detector.backbone', 'detector.neck']
    assert '0 upgraded, with exactly the original outputs**; 1 upgraded likewise but without' in summary([record])


def test_a_neck_that_no_cpu_runs_is_left_out_and_named(zoo):
    record = check_config(zoo(backbone=_backbone(), neck=dict(type='ZooNeck', works=False)))
    assert passed(record) and 'implementation for device cpu not found' in record['neck']


def test_a_detector_that_its_wrapper_builds_twice_is_upgraded_and_compared_twice(zoo):
    detector = dict(type='ZooWhole', backbone=_backbone(), neck=dict(type='ZooNeck'))
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
    record = check_config(zoo(backbone=_backbone()))
    assert record['reason'] == reasons.OURS
    assert re.search(message, record['detail']), record
    assert ('; on the' in record['detail']) == (path is nullcontext)


def test_pictures_have_the_channels_that_the_backbone_takes(zoo):
    assert passed(check_config(zoo(backbone=dict(_backbone(), in_channels=6))))


def test_the_same_model_is_checked_once_but_every_config_is_upgraded(zoo):
    first, other = zoo(backbone=_backbone()), zoo(backbone=_backbone('frozen'))
    again = zoo(text=f'model = {dict(backbone=_backbone(), type="ZooWhole")}\ntrain_cfg = dict(max_epochs=8)\n')
    schedule = zoo(text=f'model = {dict(backbone=_backbone(), type="ZooWhole")}\ntrain_cfg = dict(max_epochs="8")\n')
    assert plan([first, other, again]) == [(first, None), (other, None), (again, first)]
    record = check_duplicate(again, first)
    assert (record['reason'], record['detail']) == (reasons.DUPLICATE, first)
    assert check_duplicate(schedule, first)['reason'] == reasons.OURS, 'a config that cannot be made is no duplicate'


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


def test_a_sample_is_seeded_and_takes_the_cheap_ones_of_every_type():
    rows = [dict(config=f'{kind}{i}', backbone=kind, seconds=i) for kind in 'abc' for i in range(10)]
    chosen = configs.choose(rows, 6, seed=1)
    assert chosen == configs.choose(rows, 6, seed=1) != configs.choose(rows, 6, seed=2)
    assert Counter(name[0] for name in chosen) == dict(a=2, b=2, c=2) and all(int(name[1]) < 5 for name in chosen)
    assert sorted(configs.choose(rows, 99, seed=1)) == sorted(row['config'] for row in rows)


def test_a_process_that_dies_or_hangs_costs_one_config():
    worker = Worker(limit=300)
    worker.give(('mmdet/x.py', None))
    worker._process.kill()
    record = _wait_for(worker)
    assert record['reason'] == reasons.OURS and record['detail'] == 'its process ended with status -9'
    worker.limit = 0.01
    worker.give(('mmdet/y.py', None))
    record = _wait_for(worker)
    assert (record['config'], record['reason']) == ('mmdet/y.py', reasons.TOO_LONG) and worker._process is None


def _wait_for(worker):
    while not (record := worker.collect()):
        time.sleep(0.01)
    return record


def test_the_tool_goes_on_where_it_stopped_and_keeps_the_order(tmp_path):
    out, table = tmp_path / 'zoo.jsonl', tmp_path / 'zoo.md'
    marked = dict(config='mmseg/_base_/datasets/hrf.py', reason=reasons.STOCK, detail='left alone', seconds=0)
    out.write_text(json.dumps(marked) + '\n')
    run_tool('benchmarks/zoo/zoo_sweep.py', '--only', 'mmseg/_base_/*/[ceh][hr]*.py', '--out', out, '--summary', table)
    chase, kept, erfnet = read_records(out)
    assert (chase['config'], chase['reason']) == ('mmseg/_base_/datasets/chase_db1.py', reasons.NO_MODEL)
    assert kept == marked
    assert passed(erfnet) and erfnet['backbone'] == 'ERFNet'
    assert '2 distinct models: **1 upgraded' in table.read_text()


def test_files_that_are_no_records_and_unknown_names_are_refused(tmp_path):
    path = tmp_path / 'zoo.jsonl'
    path.write_text('{"config":"a"}\n{"name":1}\n')
    with pytest.raises(DataError, match='zoo.jsonl, line 2: no record of a sweep'):
        read_records(path)
    with pytest.raises(DataError, match="no config of the installed frameworks is called 'mmdet/none'"):
        sweep(path, only='mmdet/none')
    assert list(run_tasks([], 1, 1)) == []
