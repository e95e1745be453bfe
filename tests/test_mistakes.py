"""The likeliest mistakes on the command line, and every word of what is said to them; nothing is written."""

import os
import re

import pytest
import torch
from mmengine.config import Config

from mmdeform_upgrade.mm.preflight import build_network

from .faults.doors import call_tool, plain_config_texts

UPGRADABLE = (
    'Upgradable, in order: conv1, '
    + ', '.join(f'layer{stage}.{block}.conv{conv}' for stage in (1, 2, 3, 4) for block in (0, 1) for conv in (1, 2))
    + '.'
)
FROZEN = (
    ': its weight is frozen (requires_grad=False), so its offsets would never train; lower frozen_stages or exclude it'
)
FIT = 'Give the checkpoint that the baseline config was trained to, or the config that it was trained with.'


@pytest.fixture(scope='module')
def folder(tiny_config, tmp_path_factory):
    """Configs and checkpoints, good and bad, of which the mistakes are made."""
    folder = tmp_path_factory.mktemp('mistakes')
    before = os.getcwd()
    os.chdir(folder)
    cfg = Config.fromfile(tiny_config)
    cfg.log_level = 'ERROR'
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.serialize_data = False
    with plain_config_texts():
        cfg.dump('config.py')
        state = build_network(cfg).state_dict()
        torch.save({'meta': {}, 'state_dict': state}, 'epoch_8.pth')
        torch.save({'state_dict': torch.nn.Conv2d(3, 3, 3).state_dict()}, 'other.pth')
        torch.save(
            {'state_dict': {name: value[:1] if 'cls' in name else value for name, value in state.items()}},
            'classes.pth',
        )
        write(cfg, 'frozen.py', **{'model.backbone.frozen_stages': 4})
        hook = dict(custom_hooks=[dict(type='DeformUpgradeHook')], load_from='epoch_8.pth')
        write(cfg, 'hook_only.py', **hook)
        layers = {
            'model.backbone.type': 'DeformUpgrade',
            'model.backbone.base_type': 'ResNet',
            'model.backbone.targets': 'last:1',
        }
        write(cfg, 'upgraded.py', **hook, **layers)
        for name, text in (
            ('empty.pth', ''),
            ('page.pth', '<!DOCTYPE html>'),
            ('broken.py', 'model = dict(\n'),
            ('lfs.pth', 'version https://git-lfs.github.com/spec/v1\nsize 12345\n'),
        ):
            (folder / name).write_text(text)
        yield folder
    os.chdir(before)


def write(cfg, name, **changes):
    changed = Config(cfg._cfg_dict.to_dict())
    changed.merge_from_dict(
        dict(changes, custom_imports=dict(imports=['mmdeform_upgrade'], allow_failed_imports=False))
    )
    changed.dump(name)


UPGRADE = ['upgrade.py', 'config.py', 'epoch_8.pth']
TRAIN = ['train.py', 'upgraded.py', '--work-dir', 'work']
# What was done, and what is said.
MISTAKES = {
    'a wrong name of a target': (
        [*UPGRADE, '--targets', 'backbone.layer4.1.conv2'],
        (
            "TargetError: DeformUpgrade of ResNet: targets='backbone.layer4.1.conv2' match no convolution (a string is a "
            "regular expression for the whole dotted name). Did you mean 'layer4.1.conv2'? " + UPGRADABLE
        ),
    ),
    'last:0': (
        [*UPGRADE, '--targets', 'last:0'],
        "TargetError: DeformUpgrade of ResNet: targets='last:0': write last:N with a whole number N of at least 1",
    ),
    'last:99': (
        [*UPGRADE, '--targets', 'last:99'],
        (
            "TargetError: DeformUpgrade of ResNet: targets='last:99' asks for 99 convolutions, and there are 17. "
            + UPGRADABLE
        ),
    ),
    'frozen targets': (
        ['upgrade.py', 'frozen.py', 'epoch_8.pth'],
        (
            'TargetError: DeformUpgrade of ResNet (frozen_stages=4): nothing was upgraded:\n'
            f'  layer4.0.conv2{FROZEN}\n  layer4.1.conv1{FROZEN}\n  layer4.1.conv2{FROZEN}'
        ),
    ),
    'a config that is upgraded already': (
        ['upgrade.py', 'upgraded.py', 'epoch_8.pth'],
        (
            "ConfigError: model.backbone is upgraded already (base_type='ResNet', targets='last:1'): start from the config "
            'of the baseline, or change targets there'
        ),
    ),
    'a wrong part': (
        [*UPGRADE, '--part', 'neck2'],
        (
            "ConfigError: the model has no part 'neck2' (looked for 'neck2'): it has backbone, bbox_head, "
            'data_preprocessor, neck; name one of them'
        ),
    ),
    'a ratio in percent': (
        [*UPGRADE, '--epoch-ratio', '25'],
        ('ConfigError: epoch_ratio=25.0 is not in (0, 1]: it is the new length over the old'),
    ),
    "checkpoint and config in each other's place": (
        ['upgrade.py', 'epoch_8.pth', 'config.py'],
        ("ConfigError: 'epoch_8.pth' is no config, which ends in .py: give the config first, then the checkpoint"),
    ),
    'the same for a test': (
        ['test.py', 'epoch_8.pth', 'config.py'],
        ("ConfigError: 'epoch_8.pth' is no config, which ends in .py: give the config first, then the checkpoint"),
    ),
    'a config for the checkpoint': (
        ['upgrade.py', 'config.py', 'config.py'],
        (
            'CheckpointError: config.py is no readable checkpoint (SIZE bytes): it looks like plain text '
            "(b'HEAD'...); give the checkpoint itself"
        ),
    ),
    'a file that is not there': (
        ['upgrade.py', 'config.py', 'none.pth'],
        ("CheckpointError: there is no file 'none.pth': give the path of a checkpoint"),
    ),
    'a folder for a file': (
        ['upgrade.py', 'config.py', '.'],
        ("CheckpointError: '.' is a folder: give the path of a checkpoint in it"),
    ),
    'an empty file': (
        ['upgrade.py', 'config.py', 'empty.pth'],
        ('CheckpointError: empty.pth is no readable checkpoint (0 bytes): it is empty; copy or download it again'),
    ),
    'a failed download': (
        ['upgrade.py', 'config.py', 'page.pth'],
        (
            'CheckpointError: page.pth is no readable checkpoint (15 bytes): it looks like a web page, so the download '
            'failed (a login or error page was saved); download it again'
        ),
    ),
    'a pointer of git-LFS': (
        ['upgrade.py', 'config.py', 'lfs.pth'],
        (
            'CheckpointError: lfs.pth is no readable checkpoint (54 bytes): it looks like a git-LFS pointer, not the file '
            'itself: run "git lfs pull", or download the file'
        ),
    ),
    'no checkpoint to start from': (
        [*TRAIN, '--cfg-options', 'load_from=None', 'experiment_name=a'],
        (
            'ConfigError: DeformUpgradeHook: no checkpoint was loaded, and an upgrade starts from a trained baseline; set '
            'load_from, or take the hook out to train from scratch'
        ),
    ),
    'nothing to resume': (
        [*TRAIN, '--cfg-options', 'load_from=None', 'resume=True', 'experiment_name=b'],
        (
            'ConfigError: resume: there is no checkpoint in FOLDER/work, and training would start from random weights; run '
            'without resume, with load_from the baseline'
        ),
    ),
    'a baseline to resume': (
        [*TRAIN, '--resume', 'epoch_8.pth', '--cfg-options', 'experiment_name=c'],
        (
            'CheckpointError: epoch_8.pth: it is no checkpoint of an interrupted run: it has no epoch and no iter and no '
            'message_hub. --resume continues an interrupted run, without a path from the last whole checkpoint of the '
            'work directory; give a baseline or a finished network as load_from, without --resume'
        ),
    ),
    'the hook without the upgrade': (
        ['train.py', 'hook_only.py', '--work-dir', 'work', '--cfg-options', 'experiment_name=d'],
        (
            "ConfigError: DeformUpgradeHook: the model has no ZeroOffsetDCN; set model.backbone=dict(type='DeformUpgrade', "
            'base_type=..., targets=...), or take the hook out'
        ),
    ),
    'a misspelt class': (
        [*TRAIN, '--cfg-options', 'model.backbone.base_type=Resnet'],
        (
            "ConfigError: DeformUpgrade: base_type 'Resnet' is not registered in the scope 'mmdet'; set default_scope in "
            "the config, or name it with its scope, as in 'mmdet.ResNet'"
        ),
    ),
    'an option without a value': (
        [*TRAIN, '--cfg-options', 'model.backbone.targets'],
        ('error: --cfg-options model.backbone.targets: expected KEY=VALUE, without spaces around the sign'),
    ),
    'a launcher that has not launched': (
        [*TRAIN, '--launcher', 'pytorch'],
        (
            'ConfigError: --launcher pytorch: torchrun has not started this process (RANK is not set); run '
            'tools/dist_train.sh CONFIG GPUS or tools/slurm_train.sh, or leave --launcher out'
        ),
    ),
    'another launcher that has not launched': (
        [*TRAIN, '--launcher', 'slurm'],
        'ConfigError: --launcher slurm: srun has not started this process (SLURM_PROCID is not set); run ',
    ),
    'a key that the network does not have': (
        [*TRAIN, '--cfg-options', 'model.backbone.dept=18'],
        (
            'ConfigError: the model of the config cannot be built: TypeError: ResNet.__init__() got an unexpected keyword '
            "argument 'dept'"
        ),
    ),
    'a file as the work directory': (
        ['train.py', 'upgraded.py', '--work-dir', 'config.py'],
        (
            "OSError: [Errno 17] File exists: 'FOLDER/config.py': what was written before stays; name a place that can be "
            'written to and start again'
        ),
    ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_answered_before_anything_is_written(folder, mistake):
    arguments, expected = MISTAKES[mistake]
    before = sorted(path.name for path in folder.iterdir() if path.name != 'work')
    status, said = call_tool(*arguments)
    text = (folder / 'config.py').read_text()
    expected = (
        expected.replace('FOLDER', str(folder))
        .replace('SIZE', str(len(text)))
        .replace("'HEAD'", repr(text[:40].encode())[1:])
    )
    assert status == 2 and said[said.rfind(expected[:12]) :].startswith(expected)
    assert sorted(path.name for path in folder.iterdir() if path.name != 'work') == before


def test_a_config_that_is_no_python_is_named_with_the_line(folder):
    status, said = call_tool('upgrade.py', 'broken.py', 'epoch_8.pth')
    assert status == 2 and said.startswith('ConfigError: broken.py: SyntaxError: ') and 'line 1' in said


@pytest.mark.parametrize(
    'line,error',
    [
        ('lr = rate', "NameError: name 'rate' is not defined"),
        ("train_cfg = dict(type=dict(type='x'))", 'TypeError: type={.* cannot inherit from base'),
        ('lr = {{_base_.nothing.lr}}', '.*nothing'),
        ("_base_ = ['nowhere.py']", 'FileNotFoundError: .*nowhere.py'),
    ],
)
def test_a_config_that_cannot_be_read_is_one_message(folder, line, error):
    (folder / 'child.py').write_text(line if '_base_ =' in line else f"_base_ = ['config.py']\n{line}\n")
    status, said = call_tool('upgrade.py', 'child.py', 'epoch_8.pth')
    (folder / 'child.py').unlink()
    assert status == 2 and re.match(rf'ConfigError: child\.py: {error}', said), said


def test_a_checkpoint_of_another_network_is_named_with_every_key(folder):
    status, said = call_tool('upgrade.py', 'config.py', 'other.pth')
    lines = said.strip().splitlines()
    assert status == 2 and lines[0] == (
        'CheckpointError: other.pth: the checkpoint does not fit the network (only offset branches may be new):'
    )
    assert lines[1].startswith('  missing in the checkpoint (126): backbone.conv1.weight, ')
    assert lines[2:] == [
        '  unexpected in the checkpoint (2): weight, bias',
        (
            'Most of the network is missing: this is a checkpoint of another architecture, or in a format that is not '
            'known (docs/formats.md lists those that are).'
        ),
        FIT,
    ]


def test_another_number_of_classes_is_told(folder):
    status, said = call_tool('upgrade.py', 'config.py', 'classes.pth')
    lines = said.strip().splitlines()
    assert status == 2 and lines[1].startswith(
        '  of another shape (8): bbox_head.cls_convs.0.0.weight: the checkpoint '
        'has (1, 16, 3, 3), the network (28, 16, 3, 3), '
    )
    assert 'trained on another number of classes' in lines[2] and lines[3:] == [FIT]


@pytest.mark.skipif(torch.cuda.is_available(), reason='has a GPU')
@pytest.mark.parametrize(
    'arguments,expected',
    [
        (
            [*TRAIN, '--amp'],
            'ConfigError: --amp needs a GPU, and there is none here: leave it out, or train on a CPU in '
            "bfloat16 with custom_hooks=[dict(type='BFloat16Hook'), ...]",
        ),
        (
            ['analysis_tools/show_offsets.py', 'config.py', 'upgraded.py', 'epoch_8.pth', '--device', 'cuda'],
            "ConfigError: device 'cuda' cannot be used here (WHY); use cpu",
        ),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(folder, arguments, expected):
    status, said = call_tool(*arguments)
    first, _, last = expected.partition('WHY')
    assert status == 2 and said.startswith(first) and said.strip().endswith(last)


def test_other_preprocessing_than_the_foreign_weights_need_is_told():
    from mmdeform_upgrade.importers.checks import preprocessing

    model = torch.nn.Module()
    model.data_preprocessor = torch.nn.Module()
    model.data_preprocessor.mean, model.data_preprocessor.std = torch.tensor([0.0] * 3), torch.tensor([255.0] * 3)
    model.data_preprocessor._channel_conversion = False
    assert preprocessing([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], True)(model) == [
        (
            'data_preprocessor has mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0], bgr_to_rgb=False; the weights need '
            'mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True: set model.data_preprocessor'
        )
    ]
