import re

import pytest
import torch
from mmengine.config import Config

from mmdeform_upgrade import load_baseline, upgrade_
from mmdeform_upgrade.checkpoint import fit_baseline, import_baseline, is_offset_key, remap_state_dict
from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.importers import OWN_NAMES, Imported
from mmdeform_upgrade.release.revert import judge, reverted_checkpoint

from .conftest import MMDET_CONFIGS, build


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


def _moved(state_dict):
    return [key for key, value in state_dict.items() if is_offset_key(key) and value.any()]


def test_offsets_and_counters_are_added_as_zeros_and_nothing_else_changes():
    baseline = _baseline()
    remapped = remap_state_dict(baseline, _network())
    assert set(remapped) == set(_network())
    assert all(remapped[key] is value for key, value in baseline.items())
    assert not _moved(remapped) and remapped['bn.num_batches_tracked'] == 0
    assert set(baseline) == {'conv.weight', 'bn.running_mean', 'cls.weight'}, 'the input is not changed'


def test_an_upgraded_checkpoint_is_taken_as_it_is():
    remapped = remap_state_dict(_network(), _network())
    assert len(_moved(remapped)) == 2


def test_all_problems_stand_in_one_message():
    baseline = _baseline()
    del baseline['bn.running_mean']
    baseline['extra.weight'] = torch.ones(1)
    baseline['conv.weight'] = torch.ones(4, 2, 5, 5)
    message = (
        r'(?s)missing in the checkpoint \(1\): bn.running_mean.*unexpected in the checkpoint \(1\): extra.weight.*'
        r'conv.weight: the checkpoint has \(4, 2, 5, 5\), the network \(4, 2, 3, 3\)'
    )
    with pytest.raises(CheckpointError, match=message):
        remap_state_dict(baseline, _network())


def test_half_an_offset_branch_is_no_baseline():
    baseline = {**_baseline(), 'conv.conv_offset.bias': torch.zeros(18)}
    with pytest.raises(CheckpointError, match=r'missing in the checkpoint \(1\): conv.conv_offset.weight'):
        remap_state_dict(baseline, _network())


def test_another_architecture_is_recognised():
    with pytest.raises(CheckpointError, match='another architecture'):
        remap_state_dict({'features.0.weight': torch.ones(1)}, _network())


@pytest.mark.parametrize(
    'config,heads',
    [
        ('yolo/yolov3_d53_8xb8-320-273e_coco.py', ['bbox_head']),
        ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', ['roi_head.bbox_head', 'roi_head.mask_head']),
        ('centernet/centernet_r18_8xb16-crop512-140e_coco.py', ['bbox_head']),
    ],
)
def test_another_number_of_classes_is_told_whatever_the_head_calls_its_layers(config, heads):
    networks = []
    for classes in (80, 5):
        cfg = Config.fromfile(MMDET_CONFIGS / config)
        cfg.merge_from_dict({f'model.{head}.num_classes': classes for head in heads})
        cfg.model.backbone.init_cfg = None
        networks.append(build(cfg).state_dict())
    with pytest.raises(CheckpointError, match='another number of classes'):
        remap_state_dict(*networks)


def test_an_embedding_with_a_row_for_each_class_counts_as_an_output():
    shapes = {'cls.weight': (80, 4), 'cls.bias': (80,), 'label_embedding.weight': (80, 4)}
    fewer = {key: torch.ones(5, *shape[1:]) for key, shape in shapes.items()}
    with pytest.raises(CheckpointError, match='another number of classes'):
        remap_state_dict({key: torch.ones(shape) for key, shape in shapes.items()}, fewer)


def test_other_widths_are_not_called_another_number_of_classes():
    network = {'query.weight': torch.ones(100, 4), 'conv.weight': torch.ones(8, 4, 1, 1), 'conv.bias': torch.ones(8)}
    wider = {'conv.weight': torch.ones(8, 6, 1, 1)}
    for other in ({'query.weight': torch.ones(300, 4)}, wider):
        with pytest.raises(CheckpointError, match='of another shape') as error:
            remap_state_dict({**network, **other}, network)
        assert 'number of classes' not in str(error.value)


@pytest.mark.parametrize('prefix', ['_orig_mod.', 'teacher.', 'model.', 'student.model.'])
def test_a_prefix_too_many_is_named_with_the_way_to_take_it_off(prefix):
    baseline = {prefix + key: value for key, value in _baseline().items()}
    others = {f'zz.{key}': value + 1 for key, value in _baseline().items()}  # a second network in the file
    with pytest.raises(CheckpointError, match=rf"names begin with '{prefix}'") as error:
        remap_state_dict({**baseline, **others, f'{prefix}more': torch.ones(1)}, _network())
    assert 'another architecture' not in str(error.value)
    way = re.search(r'as in ({.+})\.', str(error.value)).group(1)
    for wrapper in ('', 'module.'):  # which was dropped when the file was read
        state_dict = {wrapper + key: value for key, value in {**baseline, **others}.items()}
        saved = eval(way, {'state_dict': state_dict})
        assert saved == {key.removeprefix(prefix): value for key, value in baseline.items()}


class _Another(torch.nn.Module):
    """A deformable layer of somebody else beside a convolution that is upgraded."""

    def __init__(self):
        super().__init__()
        self.theirs = torch.nn.ModuleDict({'conv_offset': torch.nn.Conv2d(2, 27, 3)})
        self.ours = torch.nn.Conv2d(2, 2, 3)


def test_only_layers_of_the_upgrade_may_lack_offsets_and_start_at_zero():
    model = _Another()
    trained = {key: value.clone() for key, value in model.state_dict().items()}
    upgrade_(model, 'ours')
    fitted = fit_baseline(Imported(OWN_NAMES, trained), model)
    assert fitted.added == ('ours.conv_offset.weight', 'ours.conv_offset.bias')
    assert fitted.state_dict['theirs.conv_offset.weight'].any()
    lacking = {key: value for key, value in trained.items() if not key.startswith('theirs')}
    with pytest.raises(CheckpointError, match='missing in the checkpoint .2.: theirs.conv_offset.weight'):
        fit_baseline(Imported(OWN_NAMES, lacking), model)


@pytest.mark.parametrize('wrapped', ['module._orig_mod.{}', '_orig_mod.module.{}'])
def test_wrappers_leave_nothing_in_the_names_in_either_order(wrapped, tmp_path):
    state = {wrapped.format('backbone._orig_mod.conv.weight'): torch.ones(1)}
    torch.save(state, tmp_path / 'compiled.pth')
    assert list(load_baseline(str(tmp_path / 'compiled.pth'))) == ['backbone.conv.weight']


def test_a_shared_layer_starts_at_zero_under_each_of_its_names(tmp_path):
    """As RTMDet's head has them on every level."""

    def network():
        head = torch.nn.ModuleList(torch.nn.ModuleList([torch.nn.Conv2d(3, 3, 3, padding=1)]) for _ in range(2))
        head[1][0] = head[0][0]
        return head

    torch.save(network().state_dict(), tmp_path / 'baseline.pth')
    upgraded = network()
    upgrade_(upgraded, 'last:1')
    loaded = import_baseline(str(tmp_path / 'baseline.pth'), upgraded).state_dict
    assert upgraded.load_state_dict(loaded) and not loaded['1.0.conv_offset.weight'].any()
    back = reverted_checkpoint({'state_dict': loaded}, upgraded, judge(upgraded, None))
    assert list(back['state_dict']) == list(network().state_dict())
