"""Deltas: bit for bit the upgrade, and only on its own baseline."""

import copy
import os

import pytest
import torch
from mmdet.models import ResNet

from mmdeform_upgrade import upgrade_
from mmdeform_upgrade.checkpoint import file_sha256, is_offset_key, load_baseline
from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.readers import read_checkpoint
from mmdeform_upgrade.release import apply_delta, inspect_checkpoint, make_delta, publish


def test_a_fine_tune_with_everything_else_frozen_gives_its_offset_branches_alone(files, tmp_path):
    delta, out = tmp_path / 'd.safetensors', tmp_path / 'up.pth'
    changed, total = make_delta(files.baseline, files.checkpoint, str(delta))
    contents = read_checkpoint(str(delta))
    tensors, metadata = contents['state_dict'], contents['metadata']
    assert len(tensors) == 6 and all(is_offset_key(key) for key in tensors)
    assert set(changed) == tensors.keys() and total == len(files.state_dict)
    assert os.path.getsize(delta) < 0.3 * os.path.getsize(files.checkpoint)
    assert metadata['baseline_sha256'] == file_sha256(files.baseline)
    apply_delta(files.baseline, str(delta), str(out))
    loaded = torch.load(out, weights_only=True)
    assert list(loaded['state_dict']) == list(files.state_dict)
    assert all(torch.equal(value, files.state_dict[key]) for key, value in loaded['state_dict'].items())
    assert loaded['meta']['deform_upgrade']['layers'] == files.layers


def test_a_baseline_in_half_precision_has_adapters(files, tmp_path):
    half, single = tmp_path / 'half.pth', tmp_path / 'single.pth'
    held = torch.load(files.baseline, weights_only=False)['state_dict']
    rounded = {key: value.half() if value.is_floating_point() else value for key, value in held.items()}
    trained = {
        key: rounded[key].to(value.dtype) if key in rounded else value for key, value in files.state_dict.items()
    }
    torch.save(rounded, half)
    torch.save({'state_dict': trained}, single)  # a network computes in single precision
    changed, _ = make_delta(str(half), str(single), str(tmp_path / 'd.safetensors'))
    assert len(changed) == 6 and all(is_offset_key(key) for key in changed)
    result = apply_delta(str(half), str(tmp_path / 'd.safetensors'), str(tmp_path / 'o.pth'))
    assert all(result[key].dtype == value.dtype and torch.equal(result[key], value) for key, value in trained.items())


def test_a_network_in_torchvisions_names_keeps_them(tmp_path):
    backbone = ResNet(18)
    backbone.fc = torch.nn.Linear(512, 5)  # the names of torchvision's
    upgraded = copy.deepcopy(backbone)
    torch.save(backbone.state_dict(), tmp_path / 'tv.pth')
    upgrade_(upgraded, 'last:3')
    torch.nn.init.normal_(upgraded.layer4[1].conv2.conv_offset.bias)
    torch.save(upgraded.state_dict(), tmp_path / 'up.pth')
    paths = [str(tmp_path / name) for name in ('tv.pth', 'up.pth', 'd.safetensors', 'o.pth')]
    assert len(make_delta(*paths[:3])[0]) == 6
    result = apply_delta(paths[0], *paths[2:])
    assert all(torch.equal(result[key], value) for key, value in upgraded.state_dict().items())


def test_changed_weights_and_statistics_come_back_bit_for_bit(files, tmp_path):
    changed = {key: value.clone() for key, value in files.state_dict.items()}
    for key in ('backbone.bn1.running_mean', 'backbone.layer4.0.conv1.weight'):
        changed[key].view(-1)[0] = float('nan')
    changed['backbone.bn1.weight'].view(-1)[0] = -0.0
    path, delta = tmp_path / 'c.pth', str(tmp_path / 'd.safetensors')
    torch.save({'state_dict': changed}, path)
    assert len(make_delta(files.baseline, str(path), delta)[0]) == 9
    result = apply_delta(files.baseline, delta, str(tmp_path / 'o.pth'))
    for key, value in changed.items():
        assert torch.equal(result[key].view(-1).view(torch.uint8), value.view(-1).view(torch.uint8)), key


def test_a_delta_is_no_checkpoint(files, tmp_path):
    path = str(tmp_path / 'd.safetensors')
    make_delta(files.baseline, files.checkpoint, path)
    for call in (load_baseline, lambda path: publish(path, str(tmp_path / 'zoo'))):
        with pytest.raises(CheckpointError, match='it is a delta, .*: make the whole checkpoint with .*delta.py apply'):
            call(path)
    assert 'd.safetensors: a delta, which holds only what' in str(inspect_checkpoint(path))


def test_another_baseline_is_refused_with_both_hashes(files, tmp_path):
    delta, other, out = str(tmp_path / 'd.safetensors'), str(tmp_path / 'other.pth'), tmp_path / 'out.pth'
    make_delta(files.baseline, files.checkpoint, delta)
    checkpoint = torch.load(files.baseline, weights_only=False)
    torch.save({'state_dict': checkpoint['state_dict']}, other)
    apply_delta(other, delta, str(out))  # saved again: the tensors are the same
    out.unlink()
    checkpoint['state_dict']['backbone.bn1.weight'][0] += 1
    torch.save(checkpoint, other)
    with pytest.raises(CheckpointError, match=f'(?s){file_sha256(other)}.*{file_sha256(files.baseline)}'):
        apply_delta(other, delta, str(out))
    assert not out.exists()


def test_files_that_do_not_belong_together_are_refused(files, tmp_path):
    with pytest.raises(CheckpointError, match='is no upgrade of the first: it lacks 6'):
        make_delta(files.checkpoint, files.baseline, str(tmp_path / 'd.safetensors'))
    with pytest.raises(CheckpointError, match='is no delta'):
        apply_delta(files.baseline, files.checkpoint, str(tmp_path / 'o.pth'))
    assert list(tmp_path.iterdir()) == []
