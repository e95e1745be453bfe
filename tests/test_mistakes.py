"""The likeliest mistakes on the command line, and what is said to them; nothing is written."""

import os
import re

import pytest
import torch
from mmengine.config import Config

from mmdeform_upgrade.mm.preflight import build_network

from .faults.doors import call_tool, plain_config_texts


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
        offsets = {f'backbone.layer4.1.conv2.conv_offset.{kind}': torch.ones(18, *shape) for kind, shape in OFFSETS}
        torch.save({'meta': {}, 'state_dict': {**state, **offsets}}, 'upgraded.pth')
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
        (folder / 'cut.pth').write_bytes((folder / 'epoch_8.pth').read_bytes()[:-5000])
        yield folder
    os.chdir(before)


def write(cfg, name, **changes):
    changed = Config(cfg._cfg_dict.to_dict())
    changed.merge_from_dict(
        dict(changes, custom_imports=dict(imports=['mmdeform_upgrade'], allow_failed_imports=False))
    )
    changed.dump(name)


OFFSETS = (('weight', (64, 3, 3)), ('bias', ()))
UPGRADE = ['upgrade.py', 'config.py', 'epoch_8.pth']
TRAIN = ['train.py', 'upgraded.py', '--work-dir', 'work', '--cfg-options']
REFUSED = ['train.py', 'upgraded.py', '--work-dir', 'never', '--cfg-options']  # before there is a work directory
SWAPPED = "ConfigError: 'epoch_8.pth' is no config.*give the config first, then the checkpoint"
UPGRADABLE = r'Upgradable, in order: conv1, layer1\.0\.conv1, .*, layer4\.1\.conv2'
# What was done; what was found, what was expected and what to do.
MISTAKES = {
    'a wrong name of a target': (
        [*UPGRADE, '--targets', 'backbone.layer4.1.conv2'],
        rf"TargetError: .*'backbone.layer4.1.conv2' match no convolution.*Did you mean 'layer4.1.conv2'.*{UPGRADABLE}",
    ),
    'last:0': ([*UPGRADE, '--targets', 'last:0'], "TargetError: .*'last:0': .* a whole number N of at least 1"),
    'last:99': (
        [*UPGRADE, '--targets', 'last:99'],
        f'TargetError: .*asks for 99 convolutions, and there are 17.*{UPGRADABLE}',
    ),
    'last:99 in a run': ([*REFUSED, 'model.backbone.targets=last:99'], 'TargetError: .*there are 17'),
    'frozen targets': (
        ['upgrade.py', 'frozen.py', 'epoch_8.pth'],
        'TargetError: .*frozen_stages=4.*layer4.0.conv2: its weight is frozen.*layer4.1.conv2: .*lower frozen_stages or',
    ),
    'frozen targets in a run': (
        [*REFUSED, 'model.backbone.frozen_stages=4'],
        'TargetError: .*frozen_stages=4.*its weight is frozen',
    ),
    'groups that do not divide the channels': (
        [*UPGRADE, '--deform-groups', '3'],
        'deform_groups=3 does not divide its 64 input channels',
    ),
    'a config that is upgraded already': (
        ['upgrade.py', 'upgraded.py', 'epoch_8.pth'],
        "ConfigError: model.backbone is upgraded already .*'last:1'.*start from the config of the baseline",
    ),
    "an upgrade's checkpoint for the baseline's": (
        ['upgrade.py', 'config.py', 'upgraded.pth', '--control', 'control.py'],
        r'CheckpointError: upgraded.pth is the checkpoint of an upgrade, which has these offsets already: '
        r'backbone.layer4.1.conv2.conv_offset.weight, .*: give the checkpoint of the baseline',
    ),
    'nothing to train on': ([*REFUSED, 'train_dataloader=None'], 'ConfigError: the config has no train_dataloader'),
    'nothing to test on': (
        ['test.py', 'config.py', 'epoch_8.pth', '--work-dir', 'never', '--cfg-options', 'test_evaluator=None'],
        'ConfigError: the config has no test_evaluator, without which there is nothing to test',
    ),
    'a wrong part': (
        [*UPGRADE, '--part', 'neck2'],
        "ConfigError: .*no part 'neck2'.*it has backbone, bbox_head, data_preprocessor, neck",
    ),
    'a ratio in percent': ([*UPGRADE, '--epoch-ratio', '25'], r'ConfigError: epoch_ratio=25\.0 is not in \(0, 1\]'),
    'an output in a file': (
        [*UPGRADE, '--out', 'empty.pth/up.py'],
        'ConfigError: .*empty.pth is no folder that can be written to',
    ),
    'an output that is no Python': ([*UPGRADE, '--out', 'up.yaml'], "'up.yaml': a config file ends in .py"),
    "checkpoint and config in each other's place": (['upgrade.py', 'epoch_8.pth', 'config.py'], SWAPPED),
    'the same for a test': (['test.py', 'epoch_8.pth', 'config.py'], SWAPPED),
    'a config for the checkpoint': (
        ['upgrade.py', 'config.py', 'config.py'],
        r'CheckpointError: config.py .*\(\d+ bytes\): it looks like plain text',
    ),
    'a config that is not there': (['train.py', 'nowhere.py'], "there is no config file 'nowhere.py'"),
    'a file that is not there': (
        ['upgrade.py', 'config.py', 'none.pth'],
        "CheckpointError: there is no file 'none.pth'",
    ),
    'a baseline that is not there': (
        [*REFUSED, 'load_from=none.pth'],
        "CheckpointError: .*there is no file 'none.pth'",
    ),
    'a folder for a file': (['upgrade.py', 'config.py', '.'], "CheckpointError: '.' is a folder: .*a checkpoint in it"),
    'an empty file': (['upgrade.py', 'config.py', 'empty.pth'], 'CheckpointError: empty.pth .*empty; copy or download'),
    'a file that was cut off': (['upgrade.py', 'config.py', 'cut.pth'], 'CheckpointError: cut.pth .*truncated'),
    'a failed download': (
        ['upgrade.py', 'config.py', 'page.pth'],
        'CheckpointError: page.pth .*a web page, so the download failed .*download it again',
    ),
    'a pointer of git-LFS': (
        ['upgrade.py', 'config.py', 'lfs.pth'],
        'CheckpointError: lfs.pth .*a git-LFS pointer.*"git lfs pull"',
    ),
    'a checkpoint of a narrower network': (
        [*REFUSED, 'model.backbone.base_channels=16'],
        'CheckpointError: .*does not fit the network.*of another shape',
    ),
    'no checkpoint to start from': (
        [*TRAIN, 'load_from=None', 'experiment_name=a'],
        'ConfigError: DeformUpgradeHook: no checkpoint was loaded.*set load_from, or take the hook out',
    ),
    'nothing to resume': (
        [*TRAIN, 'load_from=None', 'resume=True', 'experiment_name=b'],
        'ConfigError: resume: there is no checkpoint in FOLDER/work.*run without resume, with load_from the baseline',
    ),
    'a baseline to resume': (
        [*TRAIN, 'experiment_name=c', '--resume', 'epoch_8.pth'],
        'CheckpointError: epoch_8.pth: .*no epoch and no iter and no message_hub.*as load_from, without --resume',
    ),
    'the hook without the upgrade': (
        ['train.py', 'hook_only.py', '--work-dir', 'work', '--cfg-options', 'experiment_name=d'],
        "ConfigError: DeformUpgradeHook: the model has no ZeroOffsetDCN; set .*type='DeformUpgrade'.*take the hook out",
    ),
    'a misspelt class': (
        [*TRAIN, 'model.backbone.base_type=Resnet'],
        "ConfigError: .*base_type 'Resnet' is not registered in the scope 'mmdet'; set default_scope.*'mmdet.ResNet'",
    ),
    'an option without a value': ([*TRAIN, 'model.backbone.targets'], 'error: .*backbone.targets: expected KEY=VALUE'),
    'a launcher that has not launched': (
        [*TRAIN[:-1], '--launcher', 'pytorch'],
        r'ConfigError: --launcher pytorch: .*RANK is not set.*tools/dist_train.sh CONFIG GPUS.*or leave --launcher out',
    ),
    'another launcher that has not launched': (
        [*TRAIN[:-1], '--launcher', 'slurm'],
        'ConfigError: --launcher slurm: .*SLURM_PROCID is not set',
    ),
    'a key that the network does not have': (
        [*TRAIN, 'model.backbone.dept=18'],
        "ConfigError: the model of the config cannot be built: TypeError: .*unexpected keyword argument 'dept'",
    ),
    'a data set that is not there': (
        [*TRAIN, 'train_dataloader.dataset.data_root=nowhere', 'experiment_name=e'],
        "OSError: .*No such file or directory: 'nowhere/.*correct the path .relative ones start at FOLDER",
    ),
    'a file as the work directory': (
        ['train.py', 'upgraded.py', '--work-dir', 'config.py'],
        "OSError: .*File exists: 'FOLDER/config.py': .*name a place that can be written to",
    ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_answered_before_anything_is_written(folder, mistake):
    arguments, expected = MISTAKES[mistake]
    before = sorted(path.name for path in folder.iterdir() if path.name != 'work')
    status, said = call_tool(*arguments)
    assert status == 2 and re.search(expected.replace('FOLDER', re.escape(str(folder))), said, re.S), said
    assert 'Traceback' not in said
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


def test_a_checkpoint_of_another_network_is_named_with_its_keys(folder):
    status, said = call_tool('upgrade.py', 'config.py', 'other.pth')
    assert status == 2 and re.search(
        r'CheckpointError: other.pth: .*missing in the checkpoint \(126\): backbone.conv1.weight, .*'
        r'unexpected in the checkpoint \(2\): weight, bias.*another architecture.*docs/formats.md',
        said,
        re.S,
    )


def test_another_number_of_classes_is_told(folder):
    status, said = call_tool('upgrade.py', 'config.py', 'classes.pth')
    assert status == 2 and re.search(
        r'of another shape \(8\): bbox_head.cls_convs.0.0.weight: the checkpoint has \(1, 16, 3, 3\), '
        r'the network \(28, 16, 3, 3\), .*trained on another number of classes',
        said,
        re.S,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason='has a GPU')
@pytest.mark.parametrize(
    'arguments,expected',
    [
        (
            [*TRAIN[:-1], '--amp'],
            "ConfigError: --amp needs a GPU, and there is none here: leave it out, .*'BFloat16Hook'",
        ),
        (
            ['analysis_tools/show_offsets.py', 'config.py', 'upgraded.py', 'epoch_8.pth', '--device', 'cuda'],
            r"ConfigError: device 'cuda' cannot be used here \(.*\); use cpu",
        ),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(folder, arguments, expected):
    status, said = call_tool(*arguments)
    assert status == 2 and re.match(expected, said)
