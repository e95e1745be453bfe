"""The pictures of where an upgrade looks, through the real inference of mmdet."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn

from mmdeform_upgrade import upgrade_
from mmdeform_upgrade.analysis.look import (
    Look,
    fields,
    layers_up_to,
    look,
    object_points,
)
from mmdeform_upgrade.analysis.offsets import OffsetRecorder
from mmdeform_upgrade.errors import CheckpointError, ConfigError
from mmdeform_upgrade.mm.preflight import load_network

from ..conftest import MMDET_CONFIGS, build, run_tool


@pytest.fixture(scope='module')
def upgraded(tiny_upgrade, shapes, tmp_path_factory):
    """An upgrade whose offsets have moved, as files, and a picture of the test split."""
    torch.manual_seed(0)
    model = build(Config.fromfile(tiny_upgrade))
    for name, parameter in model.named_parameters():
        if name.endswith('conv_offset.bias'):
            torch.nn.init.normal_(parameter, std=2)
    path = tmp_path_factory.mktemp('look') / 'upgrade.pth'
    meta = {'dataset_meta': {'classes': ('a', 'b', 'c', 'd', 'e', 'f')}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, path)
    return str(tiny_upgrade), str(path), str(sorted((shapes / 'VOC2007/JPEGImages').glob('*.jpg'))[0])


def test_the_picture_is_what_the_network_saw(upgraded):
    config, checkpoint, image = upgraded
    seen = look(load_network(config, checkpoint), image)
    original = mmcv.imread(image, channel_order='rgb')
    assert seen.picture.shape == original.shape
    assert np.abs(seen.picture.astype(int) - original).max() <= 1
    assert [record.layer for record in seen.records] == [
        f'backbone.layer4.{i}' for i in ('0.conv2', '1.conv1', '1.conv2')
    ]
    points = object_points(seen, 2)
    assert len(points) == 2 and all(-50 <= coordinate < 150 for point in points for coordinate in point)


def test_the_fields_differ_once_offsets_have_moved(upgraded):
    config, checkpoint, image = upgraded
    model = load_network(config, checkpoint)
    before, after = fields(model, look(model, image), (48, 48))
    assert before.shape == after.shape == (96, 96)
    assert before.sum() == pytest.approx(1, abs=1e-3) and np.abs(before - after).sum() > 0.01
    assert not model.training


def test_the_tool_draws_and_says_the_statistics(upgraded, tmp_path):
    config, checkpoint, image = upgraded
    show = ('analysis_tools/show_offsets.py', image, config, checkpoint, '--out', out := tmp_path / 'offsets.png')
    text = run_tool(*show, '--points', '48,48', '--layer', '1.conv2').stdout
    assert 'backbone.layer4.1.conv2: mean' in text and 'outside the map' in text
    height, wide, _ = mmcv.imread(str(out)).shape
    assert wide > 1000
    # Two positions in rows, one layer back: taller and narrower.
    run_tool(*show, '--count', 2, '--depth', 1, '--group', 0)
    rows, columns, _ = mmcv.imread(str(out)).shape
    assert rows > 1.5 * height and columns < 0.8 * wide


def test_another_layer_is_followed_back_and_has_its_own_field(upgraded):
    config, checkpoint, image = upgraded
    model = load_network(config, checkpoint)
    seen = look(model, image)
    layers = [record.layer for record in seen.records]
    assert [record.layer for record in layers_up_to(model, seen, '1.conv1')] == layers[:2]
    assert [record.layer for record in layers_up_to(model, seen)] == layers
    first, last = (fields(model, seen, (48, 48), layer)[1] for layer in (layers[0], layers[2]))
    assert np.abs(first - last).sum() > 0.01
    with pytest.raises(ConfigError, match=r"'conv2' is the name of 2 upgraded layers, expected one; .*4\.1\.conv1"):
        layers_up_to(model, seen, 'conv2')
    with pytest.raises(ConfigError, match="'onv1' is the name of 0 upgraded layers"):
        layers_up_to(model, seen, 'onv1')


def scattered_(model, targets):
    """Upgrade; the offsets are not zero."""
    upgrade_(model, targets)
    for name, parameter in model.named_parameters():
        if name.endswith('conv_offset.bias'):
            nn.init.normal_(parameter, std=2)


def seen_by(model, size):
    images = torch.randn(1, 3, size, size)
    with torch.no_grad(), OffsetRecorder(model) as recorder:
        prediction = model(images, mode='predict', data_samples=[sample(size)])[0]
    return Look(np.zeros((size, size, 3), np.uint8), images, list(recorder.records.values()), prediction)


def sample(size, **metainfo):
    shape = dict(
        img_shape=(size, size), ori_shape=(size, size), batch_input_shape=(size, size), scale_factor=(1.0, 1.0)
    )
    return DetDataSample(metainfo={**shape, **metainfo})


def test_layers_of_neck_and_head_have_fields_and_one_way_back():
    """Of a head that all levels share, the finest level counts; a map of the pyramid is not read by the next one."""
    cfg = Config.fromfile(MMDET_CONFIGS / 'retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg.model.backbone.init_cfg = None
    model = build(cfg).eval()
    scattered_(model.neck, 'last:3')
    scattered_(model.bbox_head, r'(cls|reg)_convs\.[23]\.conv')
    seen = seen_by(model, 128)
    assert max(tuple(record.offset.shape[-2:]) for record in seen.records) == (16, 16)
    branch = seen.records[-1].layer.rsplit('.', 3)[0]  # cls_convs or reg_convs
    way = [record.layer for record in layers_up_to(model, seen)]
    assert len(seen.records) == 7 and len([name for name in way if name.startswith('bbox_head')]) == 2
    assert all(name.startswith((branch, 'neck')) for name in way)
    for number in range(2, 5):  # the last two are of C5 and of what the one before put out
        way = [record.layer for record in layers_up_to(model, seen, f'fpn_convs.{number}.conv')]
        assert way == [f'neck.fpn_convs.{n}.conv' for n in ((3, 4) if number == 4 else (number,))]
    for record in seen.records:
        before, after = fields(model, seen, (64, 64), record.layer)
        assert np.abs(before - after).sum() > 0.01, record.layer


class SideBySide(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.left, self.right, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))

    def forward(self, images):
        first = self.first(images)
        left = self.left(first)
        return self.last(self.right(first).relu_()), left


def test_layers_side_by_side_are_not_followed_as_if_stacked():
    model = nn.Module()
    model.backbone = SideBySide()
    scattered_(model, 'last:4')
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad(), OffsetRecorder(model) as recorder:
        model.backbone(images)
    seen = Look(np.zeros((32, 32, 3), np.uint8), images, list(recorder.records.values()), None)
    assert [record.layer for record in layers_up_to(model, seen)] == [
        f'backbone.{n}' for n in ('first', 'right', 'last')
    ]
    assert [record.layer for record in layers_up_to(model, seen, 'left')] == ['backbone.first', 'backbone.left']


def test_layers_of_regions_have_no_place_on_the_picture():
    record = SimpleNamespace(layer='roi_head.conv', offset=torch.zeros(7, 1))
    seen = Look(np.zeros((8, 8, 3), np.uint8), torch.zeros(1, 3, 8, 8), [record], None)
    with pytest.raises(ConfigError, match='roi_head.conv runs on 7 regions of the picture.*whole picture: none'):
        layers_up_to(nn.Module(), seen)


def test_layers_that_run_in_training_alone_have_nothing_to_show():
    with pytest.raises(ConfigError, match='none of the upgraded layers runs in inference'):
        layers_up_to(nn.Module(), Look(np.zeros((8, 8, 3), np.uint8), torch.zeros(1, 3, 8, 8), [], None))


def test_crosses_are_where_the_objects_are_in_the_picture_as_the_network_sees_it():
    boxes, scores = torch.tensor([[10.0, 20, 30, 60], [0, 0, 10, 10]]), torch.tensor([0.4, 0.9])
    padded = sample(160, ori_shape=(100, 160), img_shape=(160, 160), scale_factor=(0.5, 0.5))
    padded.pred_instances = InstanceData(bboxes=boxes, scores=scores)
    picture = np.zeros((160, 160, 3), np.uint8)
    assert object_points(Look(picture, None, [], padded), 2) == [(2.5, 2.5), (20.0, 10.0)]
    padded.set_metainfo({'border': np.array([16, 144, 8, 152])})  # of CenterNet
    assert object_points(Look(picture, None, [], padded), 1) == [(18.5, 10.5)]
    masks = torch.zeros(1, 100, 160, dtype=torch.bool)
    masks[0, 40:43, 70:73] = True
    solo = sample(160)
    solo.pred_instances = InstanceData(bboxes=torch.zeros(1, 4), scores=torch.ones(1), masks=masks)
    assert object_points(Look(picture, None, [], solo), 3) == [(41.0, 71.0)]


def test_a_network_without_upgraded_layers_is_refused(tiny_config, tiny_baseline, upgraded):
    with pytest.raises(ConfigError, match='the network has no ZeroOffsetDCN'):
        look(load_network(str(tiny_config), str(tiny_baseline)), upgraded[2])


def test_a_checkpoint_that_does_not_fit_is_refused_and_not_taken_in_parts(upgraded, tmp_path):
    config, checkpoint, _ = upgraded
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    del state['backbone.conv1.weight']
    torch.save({'state_dict': state}, other := tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match=r'other.pth: .*does not fit.*\n.*missing.*\(1\): backbone.conv1.weight'):
        load_network(config, str(other))


def test_a_point_outside_of_the_picture_is_refused(upgraded):
    config, checkpoint, image = upgraded
    result = run_tool('analysis_tools/show_offsets.py', image, config, checkpoint, '--points', '48,200', check=False)
    assert result.returncode == 2
    assert '48,200 (Y,X) is outside of what the network sees, 96 high and 96 wide' in result.stderr


@pytest.mark.parametrize(
    'out,message', [('picture.png', 'is a file to read'), ('x.svg', r'expected a name that ends in \.png')]
)
def test_the_picture_is_not_overwritten_and_a_figure_is_a_png(out, message, upgraded, tmp_path):
    config, checkpoint, image = upgraded
    shutil.copy(image, tmp_path / 'picture.png')
    arguments = (tmp_path / 'picture.png', config, checkpoint, '--out', tmp_path / out)
    result = run_tool('analysis_tools/show_offsets.py', *arguments, check=False)
    assert result.returncode == 2 and re.search(message, result.stderr)
    assert (tmp_path / 'picture.png').read_bytes() == Path(image).read_bytes() and not (tmp_path / 'x.svg').exists()


def test_a_network_without_a_backbone_of_its_own_is_refused():
    with pytest.raises(ConfigError, match='ModuleDict has no backbone of its own: .*of a teacher and a student'):
        look(upgrade_in(nn.ModuleDict({'teacher': nn.Conv2d(3, 3, 3)})), 'picture.png')


def upgrade_in(model):
    upgrade_(model, 'last:1')
    return model


def test_a_file_that_is_not_there_is_named(upgraded):
    result = run_tool('analysis_tools/show_offsets.py', 'nothing.jpg', *upgraded[:2], check=False)
    assert result.returncode == 2 and "there is no file 'nothing.jpg'" in result.stderr
