"""Published files, and what --inspect says of any file."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage

from mmdeform_upgrade.checkpoint import file_sha256
from mmdeform_upgrade.errors import CheckpointError, ConfigError
from mmdeform_upgrade.readers import read_checkpoint
from mmdeform_upgrade.release import inspect_checkpoint, publish, published_checkpoint

from ..conftest import run_tool
from .conftest import CLASSES


def _same(first, second):
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope='module')
def release(files, tmp_path_factory):
    return publish(files.checkpoint, str(tmp_path_factory.mktemp('zoo')), config=files.config, date='20260102')


def test_a_release_is_named_after_its_config_and_the_hash_of_the_file_itself(release):
    name = re.fullmatch(r'tiny_upgrade_20260102-([0-9a-f]{8})\.pth', Path(release[0]).name)
    assert name and file_sha256(release[0]).startswith(name.group(1))
    assert sorted(p.name for p in Path(release[0]).parent.iterdir()) == sorted(Path(p).name for p in release[:2])


def test_a_release_holds_weights_and_provenance_and_loads_with_weights_only(files, release):
    loaded = torch.load(release[0], weights_only=True)
    assert set(loaded) == {'meta', 'state_dict'} and _same(loaded['state_dict'], files.state_dict)
    assert loaded['meta']['deform_upgrade']['layers'] == files.layers
    assert loaded['meta']['deform_upgrade']['baseline_sha256'] == file_sha256(files.baseline)
    assert loaded['meta']['dataset_meta']['classes'][0] == 'star' and 'DeformUpgrade' in loaded['meta']['cfg']
    assert not {'time', 'experiment_name'} & set(loaded['meta'])
    tensors = read_checkpoint(release[1])['state_dict']
    assert _same(dict(sorted(tensors.items())), dict(sorted(files.state_dict.items())))


def test_the_same_checkpoint_gives_the_same_bytes_and_nothing_is_overwritten(files, release, tmp_path):
    again = publish(files.checkpoint, str(tmp_path), config=files.config, date='20260102')
    for first, second in zip(release[:2], again[:2], strict=True):
        assert Path(first).read_bytes() == Path(second).read_bytes()
    with pytest.raises(ConfigError, match='exists; give --force'):
        publish(files.checkpoint, str(tmp_path), config=files.config, date='20260102')
    assert publish(files.checkpoint, str(tmp_path), config=files.config, date='20260102', force=True) == again
    assert len(list(tmp_path.iterdir())) == 2


def test_a_release_loads_in_init_detector_and_in_test_py(files, release, tmp_path):
    from mmdet.apis import init_detector

    model = init_detector(files.config, release[0], device='cpu')
    assert _same(model.state_dict(), files.state_dict) and model.dataset_meta['classes'][0] == 'star'
    out = run_tool('test.py', files.config, release[0], '--work-dir', tmp_path).stdout
    assert 'pascal_voc/mAP' in out


def test_the_safetensors_of_a_release_brings_classes_and_provenance_along(files, release):
    from mmdet.apis import init_detector

    model = init_detector(files.config, f'baseline://{release[1]}', device='cpu')
    assert _same(model.state_dict(), files.state_dict)
    assert tuple(model.dataset_meta['classes']) == CLASSES
    meta = read_checkpoint(release[1])['meta']
    assert meta['deform_upgrade'] == torch.load(release[0], weights_only=True)['meta']['deform_upgrade']


def test_a_safetensors_is_published_again_with_its_meta(files, release, tmp_path):
    again, _, _ = publish(release[1], str(tmp_path), config=files.config, date='20260102')
    meta = torch.load(again, weights_only=True)['meta']
    assert meta['epoch'] == 2 and meta['deform_upgrade']['layers'] == files.layers
    assert meta['published']['source'] == Path(release[1]).name


# Trap: MMEngine saves the averaged weights under state_dict and the trained ones under ema_state_dict.
def test_ema_publishes_what_mmengines_hook_averaged():
    model = torch.nn.Linear(2, 1)
    hook = EMAHook()
    hook.src_model, hook.ema_model = model, ExponentialMovingAverage(model)
    torch.nn.init.constant_(model.weight, 1.0)
    torch.nn.init.constant_(hook.ema_model.module.weight, 2.0)
    checkpoint = {'state_dict': copy.copy(model.state_dict()), 'meta': {'mmengine_version': '0.10.7'}}
    hook.before_save_checkpoint(SimpleNamespace(), checkpoint)
    published = published_checkpoint(checkpoint, ema=True)
    assert set(published) == {'meta', 'state_dict'}
    assert published['state_dict']['weight'].tolist() == [[2.0, 2.0]]


def test_ema_of_other_trainers_is_taken_from_where_it_is():
    checkpoint = {'state_dict': {'w': torch.zeros(1)}, 'ema_state_dict': {'module.w': torch.ones(1), 'steps': 3}}
    assert published_checkpoint(checkpoint, ema=True)['state_dict']['w'] == 1
    assert published_checkpoint(checkpoint)['state_dict']['w'] == 0
    with pytest.raises(CheckpointError, match='has no ema_state_dict'):
        published_checkpoint({'state_dict': {'w': torch.zeros(1)}}, ema=True)
    checkpoint['ema_state_dict'] = {'module.v': torch.ones(1)}
    with pytest.raises(CheckpointError, match='differ in their names: v, w'):
        published_checkpoint(checkpoint, ema=True)


def test_inspect_says_which_layers_moved_and_what_else_is_in_the_file(files, release):
    found = inspect_checkpoint(files.checkpoint)
    assert [(layer.name, layer.deform_groups) for layer in found.layers] == list(files.layers.items())
    assert [layer.largest for layer in found.layers][:2] == [0, pytest.approx(0.01)] and found.layers[2].largest > 1
    assert (
        set(found.extras) == {'optimizer', 'param_schedulers', 'message_hub'}
        and found.provenance['baseline'] == 'epoch_1.pth'
    )
    for path in release[:2]:
        text = str(inspect_checkpoint(path))
        assert 'an upgrade of 3 layers' in text and 'offsets exactly zero' in text and 'epoch 2' in text
        assert 'besides weights: nothing' in text and 'baseline_sha256' in text


@pytest.mark.parametrize(
    'checkpoint,lines',
    [
        (
            {
                'state_dict': {'a.weight': torch.ones(2)},
                'epoch': 7,
                'global_step': 70,
                'optimizer_states': [{'state': {}}],
            },
            ['trained: epoch 7, global_step 70', 'besides weights: optimizer_states'],
        ),
        (
            {'net': {'a.weight': torch.ones(2)}, 'epoch': torch.tensor(3), 'best': None},
            ['trained: epoch 3', 'besides weights: nothing'],
        ),
        (
            {'bn0_gamma': torch.ones(2), 'bn0_moving_mean': torch.ones(2), 'bn0_running_var': torch.ones(2)},
            ['parameters: 2 (of these 0 in offset branches), BN statistics: 4', 'trained: not recorded'],
        ),
        (
            {'conv.conv_offset.weight': torch.ones(27, 2, 3, 3), 'conv.conv_offset.bias': torch.ones(27)},
            ['a network with 1 deformable layers', 'deform_groups unknown', 'provenance: not recorded'],
        ),
        (  # DCNv2 of four groups, and a training that diverged
            {
                'conv.conv_offset.weight': torch.ones(108, 256, 3, 3),
                'conv.conv_offset.bias': torch.full((108,), torch.nan),
            },
            ['deform_groups unknown', 'offsets not finite'],
        ),
    ],
)
def test_inspect_says_only_what_is_so(tmp_path, checkpoint, lines):
    torch.save(checkpoint, tmp_path / 'a.pth')
    text = str(inspect_checkpoint(tmp_path / 'a.pth'))
    assert all(line in text for line in lines), text


def test_inspect_takes_a_key(tmp_path):
    torch.save({'a': {'w.x': torch.ones(2)}, 'b': {'w.x': torch.ones(3)}}, tmp_path / 'a.pth')
    assert 'parameters: 3 ' in str(inspect_checkpoint(f'{tmp_path}/a.pth::b'))


def test_inspect_says_of_a_baseline_that_it_is_one(files):
    text = str(inspect_checkpoint(files.baseline))
    assert 'a baseline, nothing in it is upgraded' in text and 'optimizer' in text and 'epoch 1' in text
    with pytest.raises(CheckpointError, match='there is no file'):
        inspect_checkpoint('none.pth')


def test_a_refused_publish_writes_nothing(files, tmp_path):
    with pytest.raises(CheckpointError, match='no ema_state_dict'):
        publish(files.checkpoint, str(tmp_path / 'zoo'), ema=True)
    with pytest.raises(ConfigError, match='expected YYYYMMDD'):
        publish(files.checkpoint, str(tmp_path / 'zoo'), date='today')
    with pytest.raises(CheckpointError, match='lacks offsets of these.*checkpoint of an upgrade has them all'):
        publish(files.baseline, str(tmp_path / 'zoo'), config=files.config)
    diverged, path = read_checkpoint(files.checkpoint), Path(files.checkpoint).with_name('nan.pth')
    diverged['state_dict']['backbone.conv1.weight'][0] = torch.nan
    torch.save(diverged, path)
    with pytest.raises(CheckpointError, match=r'1 of its tensors hold NaN \(backbone.conv1.weight\)'):
        publish(str(path), str(tmp_path / 'zoo'))
    assert list(tmp_path.iterdir()) == []
