import pytest
import torch

from mmdeform_upgrade.checkpoint import nonzero_offsets, remap_state_dict
from mmdeform_upgrade.errors import CheckpointError


def _network():
    return {
        'conv.weight': torch.ones(4, 2, 3, 3),
        'conv.conv_offset.weight': torch.ones(18, 2, 3, 3),
        'conv.conv_offset.bias': torch.ones(18),
        'bn.running_mean': torch.ones(4),
        'bn.num_batches_tracked': torch.tensor(7),
        'cls.weight': torch.ones(5, 4),
    }


def _baseline():
    return {
        key: torch.randn_like(value)
        for key, value in _network().items()
        if 'offset' not in key and value.is_floating_point()
    }


def test_offsets_and_counters_are_added_as_zeros_and_nothing_else_changes():
    baseline = _baseline()
    remapped = remap_state_dict(baseline, _network())
    assert set(remapped) == set(_network())
    assert all(remapped[key] is value for key, value in baseline.items())
    assert not nonzero_offsets(remapped) and remapped['bn.num_batches_tracked'] == 0
    assert set(baseline) == {'conv.weight', 'bn.running_mean', 'cls.weight'}, 'the input is not changed'


def test_an_upgraded_checkpoint_is_taken_as_it_is():
    remapped = remap_state_dict(_network(), _network())
    assert len(nonzero_offsets(remapped)) == 2


def test_all_problems_stand_in_one_message():
    baseline = _baseline()
    del baseline['bn.running_mean']
    baseline['extra.weight'] = torch.ones(1)
    baseline['conv.weight'] = torch.ones(4, 2, 5, 5)
    with pytest.raises(CheckpointError) as error:
        remap_state_dict(baseline, _network())
    text = str(error.value)
    assert 'missing in the checkpoint (1): bn.running_mean' in text
    assert 'unexpected in the checkpoint (1): extra.weight' in text
    assert 'conv.weight: the checkpoint has (4, 2, 5, 5), the network (4, 2, 3, 3)' in text


def test_half_an_offset_branch_is_no_baseline():
    baseline = {**_baseline(), 'conv.conv_offset.bias': torch.zeros(18)}
    with pytest.raises(CheckpointError, match='conv.conv_offset.weight'):
        remap_state_dict(baseline, _network())


def test_another_architecture_and_another_class_count_are_recognised():
    with pytest.raises(CheckpointError, match='another architecture'):
        remap_state_dict({'features.0.weight': torch.ones(1)}, _network())
    with pytest.raises(CheckpointError, match='another number of classes'):
        remap_state_dict({**_baseline(), 'cls.weight': torch.ones(81, 4)}, _network())
