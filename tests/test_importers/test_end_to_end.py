"""From a file of GluonCV's SSD512 to a fine-tuned and tested upgrade, through the tools alone."""

import re

import pytest
import torch

from mmdeform_upgrade.readers import read_checkpoint

from ..conftest import ROOT, run_tool
from .gluoncv_files import write_ssd

CONFIG = """
_base_ = '{base}'
classes = ('star', 'ring', 'cross', 'worm', 'crescent', 'arrow', *(f'unused{{i}}' for i in range(14)))
dataset = dict(
    _delete_=True, type='XMLDataset', data_root='{data}/', data_prefix=dict(sub_data_root='VOC2007/'),
    metainfo=dict(classes=classes, dataset_type=None))
resize = dict(type='ResizeByDirection', scale=(128, 128))
load = [dict(type='LoadImageFromFile'), resize, dict(type='LoadAnnotations', with_bbox=True)]
meta = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
train = [load[0], load[2], dict(type='Resize', scale=(128, 128)), dict(type='PackDetInputs')]
lists = 'VOC2007/ImageSets/Main/'
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    dataset=dict(dataset, ann_file=lists + 'val.txt', pipeline=train))
val_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(dataset, ann_file=lists + 'val.txt', test_mode=True, pipeline=[*load, meta]))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=4)
"""


@pytest.fixture(scope='module')
def gluoncv(shapes, tmp_path_factory):
    """A config for the generated shapes that inherits GluonCV's, and a file with random weights of its network."""
    folder = tmp_path_factory.mktemp('gluoncv')
    config = folder / 'shapes.py'
    config.write_text(CONFIG.format(base=ROOT / 'configs/gluoncv/ssd512_r50_voc.py', data=shapes))
    params = folder / 'ssd_512_resnet50_v1_voc.params'
    write_ssd(params, dialect='exported')
    return config, params


@pytest.mark.slow
def test_a_file_of_gluoncv_is_upgraded_fine_tuned_and_tested(gluoncv, tmp_path):
    config, params = gluoncv
    out, work_dir = tmp_path / 'upgrade.py', tmp_path / 'work'
    plan = run_tool('upgrade.py', config, params, '--out', out).stdout
    assert 'GluonCV' in plan and '6 offset tensors start at zero' in plan
    log = run_tool('train.py', out, '--work-dir', work_dir).stdout
    assert re.search(r'Imported GluonCV', log) and '6 offset tensors added as zeros' in log
    assert re.search(r'Before its first step the upgrade scores.*pascal_voc/mAP', log)
    checkpoint = read_checkpoint(work_dir / 'epoch_1.pth')
    imported = checkpoint['meta']['deform_upgrade']
    assert imported['baseline'] == params.name and 'GluonCV' in str(imported['imported'])
    offsets = {key: value for key, value in checkpoint['state_dict'].items() if 'conv_offset' in key}
    assert len(offsets) == 6 and any(value.any() for value in offsets.values())
    assert all(torch.isfinite(value).all() for value in checkpoint['state_dict'].values())
    tested = run_tool('test.py', out, work_dir / 'epoch_1.pth', '--work-dir', tmp_path / 'test').stdout
    assert 'pascal_voc/mAP' in tested
