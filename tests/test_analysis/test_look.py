"""The pictures of where an upgrade looks, through the real inference of mmdet."""

from dataclasses import replace

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmdeform_upgrade.analysis.look import fields, level_of, load_network, look, object_points, records_up_to
from mmdeform_upgrade.errors import CheckpointError, ConfigError

from ..conftest import build, run_tool


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
    out = tmp_path / 'offsets.png'
    text = run_tool(
        'analysis_tools/show_offsets.py',
        image,
        config,
        checkpoint,
        '--out',
        out,
        '--points',
        '48,48',
        '--layer',
        '1.conv2',
    ).stdout
    assert 'backbone.layer4.1.conv2: mean' in text and 'outside the map' in text
    assert mmcv.imread(str(out)).shape[1] > 1000


def test_another_layer_is_followed_back_and_has_its_own_map(upgraded):
    config, checkpoint, image = upgraded
    model = load_network(config, checkpoint)
    seen = look(model, image)
    assert [record.layer for record in records_up_to(seen, '1.conv1')] == [r.layer for r in seen.records[:2]]
    assert records_up_to(seen) == seen.records and level_of(model, seen, seen.records[0]) == 2
    finer = replace(seen.records[0], offset=seen.records[0].offset.new_zeros(1, 1, 9, 2, 6, 6))
    assert level_of(model, seen, finer) == 1
    with pytest.raises(ConfigError, match=r"'conv2' is the name of 2 upgraded layers, expected one; .*4\.1\.conv1"):
        records_up_to(seen, 'conv2')
    with pytest.raises(ConfigError, match="'onv1' is the name of 0 upgraded layers"):
        records_up_to(seen, 'onv1')


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


def test_a_file_that_is_not_there_is_named(upgraded):
    result = run_tool('analysis_tools/show_offsets.py', 'nothing.jpg', *upgraded[:2], check=False)
    assert result.returncode == 2 and "there is no file 'nothing.jpg'" in result.stderr
