"""The signal of a config and its baseline, through the training pipelines of mmdet and mmseg."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, TRANSFORMS
from mmengine.structures import PixelData
from torch import nn

from mmdeform_upgrade.analysis.receptive_field import reaches
from mmdeform_upgrade.errors import ConfigError, DataError, TargetError
from mmdeform_upgrade.mm.signal import _objects, measure_signal

from ..conftest import build, run_tool


@pytest.fixture(scope='module')
def baseline(tiny_config, tiny_baseline):
    return Config.fromfile(tiny_config), str(tiny_baseline)


def test_the_tool_says_where_offsets_learn_and_what_to_give_to_targets(tiny_config, tiny_baseline, tmp_path):
    out = tmp_path / 'signal.v1'
    result = run_tool('analysis_tools/offset_signal.py', tiny_config, tiny_baseline, '--batches', 12, '--out', out)
    report = json.loads(Path(f'{out}.json').read_text())
    layers = {layer['layer']: layer for layer in report['layers']}
    assert [*layers][:: len(layers) - 1] == ['conv1', 'layer4.1.conv2'] and len(layers) == 17
    assert all(layer['batches'] == 12 and layer['step'] > 0 and layer['cost'] > 0 for layer in layers.values())
    assert all(layers[name]['verdict'] == 'learns' for name in report['targets'] if not name.startswith('last:'))
    # A ResNet-18 sees 7 + 12 pixels in its second convolution, and 435 in the last one.
    assert report['reach']['layer1.0.conv1'][0] == 19 and report['reach']['layer4.1.conv2'][0] == 435
    assert all(1 <= effective <= 100 for _, effective in report['reach'].values())
    assert report['batch_size'] == 4 and report['pictures'] == 16 and 10 < report['extents'][1] < 96
    assert '12 batches of 4 from 16 pictures, each seen 3.0 times' in result.stdout
    assert ('use: --targets' in result.stdout) == bool(report['targets'])
    assert 'batch/s' in result.stderr and Path(f'{out}.png').stat().st_size > 1000


def test_the_plan_of_an_upgrade_says_it_for_its_targets(tiny_config, tiny_baseline):
    text = run_tool('upgrade.py', tiny_config, tiny_baseline, '--signal', '--dry-run').stdout
    plan, _, signal = text.partition('layer           signal')
    assert 'schedule after' in plan and 'layer4.0.conv2' in signal and 'layer4.0.conv1' not in signal
    assert '32 batches of 4 from 16 pictures' in signal


def test_given_targets_alone_are_measured_and_pictures_counted_once(baseline):
    cfg = copy.deepcopy(baseline[0])
    repeated = dict(type='RepeatDataset', times=50, dataset=cfg.train_dataloader.dataset)
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[repeated])
    report = measure_signal(cfg, baseline[1], targets='res5b', batches=12)
    assert [layer.layer for layer in report.layers] == ['layer4.1.conv1', 'layer4.1.conv2'] == list(report.reach)
    assert 'from 16 pictures, each seen 3.0 times' in str(report)
    silent = [dataclasses.replace(layer, snr=math.nan, z=math.nan) for layer in report.layers]
    assert 'no gradient reaches these layers' in str(dataclasses.replace(report, layers=silent, targets=[]))


def test_excluded_layers_are_not_measured(baseline):
    report = measure_signal(*baseline, exclude=['in:layer1', 'in:layer2', 'in:layer3', 'conv1'], batches=12)
    assert [layer.layer for layer in report.layers] == [f'layer4.{i}.conv{j}' for i in (0, 1) for j in (1, 2)]


def test_a_model_that_asks_for_the_iteration_is_measured_and_its_boxes_are_moved_once(baseline):
    from mmdet.models.data_preprocessors import BatchSyncRandomResize

    moved = []

    @MODELS.register_module(force=True)
    class Halved(BatchSyncRandomResize):  # YOLOX's, which resizes pictures and boxes in place
        def forward(self, inputs, data_samples):
            self._input_size = (48, 48)
            out = super().forward(inputs, data_samples)
            moved.append(max(float(sample.gt_instances.bboxes.max()) for sample in data_samples))
            return out

    cfg = copy.deepcopy(baseline[0])
    cfg.model.data_preprocessor.batch_augments = [dict(type='Halved', random_size_range=(48, 64))]
    MessageHub.get_current_instance().runtime_info.clear()
    measure_signal(cfg, baseline[1], targets='last:1', batches=12)
    assert moved[:4] == moved[4:8] and len(moved) == 4 + 12


def test_frozen_layers_are_no_candidates(baseline):
    cfg = copy.deepcopy(baseline[0])
    cfg.model.backbone.frozen_stages = 3
    assert measure_signal(cfg, baseline[1], batches=12).layers[0].layer == 'layer4.0.conv1'
    cfg.model.backbone.frozen_stages = 4
    with pytest.raises(TargetError, match='backbone has no convolution to upgrade: .* lower frozen_stages'):
        measure_signal(cfg, baseline[1])


def test_a_config_without_a_training_set_is_refused(baseline):
    cfg = copy.deepcopy(baseline[0])
    cfg.train_dataloader = None
    with pytest.raises(ConfigError, match='the config has no train_dataloader'):
        measure_signal(cfg, baseline[1])
    cfg = copy.deepcopy(baseline[0])
    cfg.train_dataloader.dataset.ann_file = 'nothing.txt'
    with pytest.raises(DataError, match=r'the training set cannot be read: .*nothing\.txt'):
        measure_signal(cfg, baseline[1])


@TRANSFORMS.register_module()
class IgnoreEverything:
    def __call__(self, results):
        results['gt_ignore_flags'][:] = True
        return results


def test_labels_that_are_all_ignored_are_refused_before_the_work(baseline, capsys):
    cfg = copy.deepcopy(baseline[0])
    cfg.train_dataloader.dataset.pipeline.insert(-1, dict(type='IgnoreEverything'))
    with pytest.raises(DataError, match='32 batches of the training set have no label that counts'):
        measure_signal(cfg, baseline[1])
    assert 'batch/s' not in capsys.readouterr().err
    cfg = copy.deepcopy(baseline[0])
    cfg.train_dataloader.dataset.metainfo = dict(classes=('submarine',))
    with pytest.raises(DataError, match='the training set has no picture with labels of the classes'):
        measure_signal(cfg, baseline[1])


def test_pictures_without_objects_are_looked_past(baseline):
    cfg = copy.deepcopy(baseline[0])
    dataset = cfg.train_dataloader.dataset
    cfg.train_dataloader.update(batch_size=1, sampler=dict(type='DefaultSampler', shuffle=False))
    dataset.pipeline.insert(-1, dict(type='EmptyAtFirst', count=6))
    report = measure_signal(cfg, baseline[1], targets='last:1', batches=12)
    assert report.extents[1] > 10 and EmptyAtFirst.seen >= 12


@TRANSFORMS.register_module()
class EmptyAtFirst:
    seen = 0

    def __init__(self, count):
        self.count = count

    def __call__(self, results):
        EmptyAtFirst.seen += 1
        if EmptyAtFirst.seen <= self.count:
            results['gt_bboxes'] = results['gt_bboxes'][:0]
            for key in ('gt_bboxes_labels', 'gt_ignore_flags'):
                results[key] = results[key][:0]
        return results


def test_a_training_set_without_a_whole_batch_is_refused(baseline):
    cfg = copy.deepcopy(baseline[0])
    cfg.train_dataloader.update(batch_size=64, drop_last=True)
    with pytest.raises(DataError, match='the training set gives no batch: with drop_last'):
        measure_signal(cfg, baseline[1])


def test_files_of_others_are_not_overwritten(baseline, tmp_path):
    (tmp_path / 'mine.json').write_text('{}')
    arguments = (baseline[0].filename, baseline[1], '--out', tmp_path / 'mine')
    result = run_tool('analysis_tools/offset_signal.py', *arguments, check=False)
    assert result.returncode == 2 and 'mine.json' in result.stderr and '--force' in result.stderr
    assert (tmp_path / 'mine.json').read_text() == '{}'


def test_settings_that_make_no_sense_are_refused(baseline, tiny_upgrade):
    for settings in (dict(batches=5), dict(lr=0.0)):
        with pytest.raises(ConfigError, match='expected at least 12 batches and a rate above 0'):
            measure_signal(*baseline, **settings)
    with pytest.raises(ConfigError, match="device 'abacus' cannot be used here"):
        measure_signal(*baseline, device='abacus')
    with pytest.raises(ConfigError, match="the model has no part 'nose': it has .*backbone"):
        measure_signal(*baseline, part='nose')
    with pytest.raises(ConfigError, match='the config is upgraded already'):
        measure_signal(Config.fromfile(tiny_upgrade), baseline[1])


def test_objects_of_a_mask_are_its_connected_regions():
    labels = torch.zeros(1, 20, 30, dtype=torch.long)
    labels[0, 2:6, 3:13], labels[0, 10:19, 20:25], labels[0, :, 29] = 1, 1, 255
    sample = type('Sample', (), {})()
    sample.gt_sem_seg = PixelData(data=labels)
    assert sorted(_objects(sample, {255, 0})) == [(9.0, 45.0), (10.0, 40.0)]
    assert len(list(_objects(sample, {255}))) == 3


def test_reach_takes_the_longest_way_and_counts_strides_dilations_and_pooling():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(3, 2, 1))
            self.long, self.short = nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 1)
            self.last = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = self.stem(x)
            return self.last(self.long(x) + self.short(x))

    model = Two().eval()
    found = reaches({'short': model.short, 'last': model.last}, torch.randn(1, 3, 64, 64), model)
    assert [found[name][0] for name in ('short', 'last')] == [7, 7 + 4 * 4 + 2 * 4]
    assert found['short'][1] <= 7 and found['last'][1] <= 31


def test_segmentors_are_measured_on_their_masks(shapes, tmp_path):
    from ..conftest import ROOT

    cfg = Config.fromfile(ROOT / 'benchmarks/demo/configs/deeplabv3_r18_shapes.py')
    cfg.model.backbone.update(base_channels=8, stem_channels=8)
    cfg.model.decode_head.update(in_channels=64, channels=16)
    cfg.model.auxiliary_head.update(in_channels=32, channels=8)
    cfg.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset.data_root = str(shapes) + '/'
    torch.save(build(cfg).state_dict(), tmp_path / 'untrained.pth')
    report = measure_signal(cfg, str(tmp_path / 'untrained.pth'), targets='last:2', batches=12)
    assert len(report.layers) == 2 and 10 < report.extents[1] < 96 and report.pictures == 16
