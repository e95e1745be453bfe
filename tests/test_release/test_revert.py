"""Back to plain convolutions where offsets do nothing."""

import copy
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmdeform_upgrade.errors import CheckpointError, ConfigError, DataError, UpgradeError
from mmdeform_upgrade.layers import upgraded_layers
from mmdeform_upgrade.release import make_delta
from mmdeform_upgrade.release.revert import judge, output_difference, reverted_checkpoint, reverted_config
from mmdeform_upgrade.upgrade import revert_, upgrade_

from ..conftest import MMDET_CONFIGS, ROOT, build, relative_error, run_tool

NAMES = [f'backbone.layer4.{name}' for name in ('0.conv2', '1.conv1', '1.conv2')]


@pytest.fixture
def network(files):
    cfg = Config.fromfile(files.config)
    model = build(copy.deepcopy(cfg)).eval()  # detectors write into their config
    model.load_state_dict(files.state_dict)
    images = torch.randn(2, 3, 96, 96)
    return cfg, model, [lambda i=i: model(images[i : i + 1], None, mode='tensor') for i in range(2)]


def _verdicts(model, runs, threshold):
    verdicts = judge(model, threshold, runs)
    assert [verdict.name for verdict in verdicts] == NAMES
    return verdicts


@pytest.mark.parametrize(
    'threshold,expected', [(None, [True, False, False]), (0.05, [True, True, False]), (100, [True, True, True])]
)
def test_layers_go_back_by_their_offsets_on_the_data(network, threshold, expected):
    _, model, runs = network
    verdicts = _verdicts(model, runs, threshold)
    assert [verdict.revert for verdict in verdicts] == expected
    assert verdicts[0].percentile95 == 0 and verdicts[0].cost == 0
    assert verdicts[1].percentile95 == pytest.approx(0.01 * 2**0.5, rel=1e-4) and 0 < verdicts[1].cost < 0.02
    assert verdicts[2].percentile95 > 1 and verdicts[2].cost > verdicts[1].cost


@torch.no_grad()
def test_the_cost_is_that_of_really_reverting(network):
    model = network[1]
    image = torch.randn(1, 3, 96, 96)
    runs = [lambda: model.backbone(image)]
    cost, before = output_difference(model, NAMES[2:], runs), torch.cat([x.flatten() for x in runs[0]()])
    assert revert_(model, drop=NAMES[2:]) == [NAMES[0], NAMES[2]]
    after = torch.cat([x.flatten() for x in runs[0]()])
    assert cost == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4) and cost > 1e-4


@torch.no_grad()
def test_of_a_head_that_is_not_called_itself_the_cost_is_that_of_what_is(network):
    """mmseg's heads, and heads of RoIs, run through other methods than ``forward``."""
    head = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    upgrade_(head, 'last:1')
    torch.nn.init.normal_(head[0].conv_offset.bias, std=2)
    model, image = torch.nn.ModuleDict({'head': head, 'idle': copy.deepcopy(head)}), torch.randn(1, 3, 9, 9)
    cost = output_difference(model, ['head.0'], [lambda: head.forward(image)])
    with_offsets = head[0](image)
    head[0].conv_offset.bias.zero_()
    assert (
        cost == pytest.approx(float((head[0](image) - with_offsets).norm() / with_offsets.norm()), rel=1e-4)
        and cost > 0.1
    )
    assert output_difference(model, ['idle.0'], [lambda: head.forward(image)]) is None


@torch.no_grad()
def test_within_what_returns_samples_the_cost_is_that_of_what_returns_tensors(network):
    """A teacher is called, and returns predictions; its backbone is called in it."""

    class Teacher(torch.nn.Module):
        def __init__(self, detector):
            super().__init__()
            self.detector = detector

        def forward(self, image):
            self.detector.backbone(image)
            return ['a sample']

    model, image = torch.nn.ModuleDict({'teacher': Teacher(network[1])}), torch.randn(1, 3, 96, 96)
    names = [f'teacher.detector.{name}' for name in NAMES]
    cost = output_difference(model, names, [lambda: model['teacher'](image)])
    assert cost == output_difference(network[1], NAMES, [lambda: network[1].backbone(image)]) and cost > 1e-4


def test_without_data_only_exact_zeros_go_back(network):
    assert [v.revert for v in judge(network[1], 100)] == [True, False, False]
    with pytest.raises(UpgradeError, match=r'drop names layer9, and the deformable layers are backbone\.layer4'):
        revert_(network[1], drop=['layer9'])
    assert list(upgraded_layers(network[1])) == NAMES, 'a refused call leaves the model untouched'


@pytest.mark.parametrize('threshold', [None, 100])
@torch.no_grad()
def test_what_is_written_builds_the_reverted_network(network, files, threshold):
    cfg, model, runs = network
    verdicts = _verdicts(model, runs, threshold)
    result = reverted_checkpoint(torch.load(files.checkpoint, weights_only=False), model, verdicts)
    new = reverted_config(cfg, model, verdicts, result['state_dict'])
    left = [v.name for v in verdicts if not v.revert]
    built = build(copy.deepcopy(new)).eval()
    built.load_state_dict(result['state_dict'])
    assert list(upgraded_layers(built)) == left == list(result['meta']['deform_upgrade']['layers'])
    assert list(result['meta']['deform_upgrade']['reverted']) == [name for name in NAMES if name not in left]
    if not left:
        assert new.model == Config.fromfile(files.baseline_config).model
        assert new.custom_hooks == [dict(type='RunGuardHook')], 'for any training'
    revert_(model, drop=[v.name for v in verdicts if v.revert])
    image = torch.randn(1, 3, 96, 96)
    for a, b in zip(built.backbone(image), model.backbone(image), strict=True):
        assert relative_error(a, b) == 0


def test_a_network_that_computes_its_drop_path_while_it_is_built_goes_back_too():
    cfg = Config.fromfile(MMDET_CONFIGS / 'retinanet' / 'retinanet_r50_fpn_1x_coco.py')
    swin = dict(type='SwinTransformer', embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), patch_norm=True)
    cfg.model.backbone = dict(swin, type='DeformUpgrade', base_type='SwinTransformer', targets='last:1')
    cfg.model.neck.in_channels = [8, 16, 32, 64]
    model = build(copy.deepcopy(cfg))
    verdicts = judge(model, None)
    assert [verdict.revert for verdict in verdicts] == [True]
    result = reverted_checkpoint({'state_dict': model.state_dict()}, model, verdicts)
    assert reverted_config(cfg, model, verdicts, result['state_dict']).model.backbone.type == 'SwinTransformer'


def test_a_baseline_has_nothing_to_revert():
    with pytest.raises(CheckpointError, match='no ZeroOffsetDCN: there is nothing to revert'):
        judge(torch.nn.Conv2d(1, 1, 1), None)


def test_the_tool_reports_validates_and_then_writes(files, tmp_path):
    out = tmp_path / 'back.pth'
    text = run_tool(
        'model_converters/revert.py', files.config, files.checkpoint, out, '--threshold', 0.1, '--num', 1, '--validate'
    ).stdout
    assert re.search(r'layer4\.0\.conv2: revert: offsets exactly zero, reverting it changes the output by 0 ', text)
    assert re.search(r'layer4\.1\.conv2: keep: 95 % of offsets below \d', text) and '2 of 3 layers go back' in text
    assert re.search(r'before: pascal_voc.*after: pascal_voc', text, re.S)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['back.pth', 'back.py']
    cfg = Config.fromfile(Path(tmp_path / 'back.py'))
    assert list(upgraded_layers(build(cfg))) == NAMES[2:] and cfg.work_dir == 'work_dirs/back', (
        'not the folder of the upgrade'
    )


@pytest.fixture
def pictures(shapes, tmp_path):
    """Three pictures of the test split, and a file that is none."""
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for path in sorted((shapes / 'VOC2007/JPEGImages').glob('*.jpg'))[-3:]:
        shutil.copy(path, folder / f'{path.stem}.JPG')
    (folder / 'notes.txt').write_text('no picture')
    return folder


def _revert(*arguments):
    return runpy.run_path(str(ROOT / 'tools/model_converters/revert.py'))['main']([str(word) for word in arguments])


def test_pictures_of_a_folder_are_judged_instead_of_the_validation_set(files, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **kwargs: (text, True))
    seen = []
    predict = 'mmdeform_upgrade.analysis.look.predict'
    from mmdeform_upgrade.analysis.look import predict as original

    monkeypatch.setattr(predict, lambda model, image: seen.append(Path(image).name) or original(model, image))
    # The set is not looked at: it need not be there.
    cfg = Config.fromfile(files.config)
    cfg.val_dataloader.dataset.data_root = 'nowhere/'
    cfg.dump(tmp_path / 'moved.py')
    out = tmp_path / 'back.pth'
    _revert(tmp_path / 'moved.py', files.checkpoint, out, '--threshold', 0.1, '--images', pictures, '--num', 2)
    said = capsys.readouterr().out
    assert set(seen) == {path.name for path in sorted(pictures.glob('*.JPG'))[:2]}
    assert re.search(r'1\.conv1: revert: 95 % of offsets below 0\.01414 px, reverting it changes the output by ', said)
    assert re.search(r'1\.conv2: keep: ', said) and '2 of 3 layers go back; together' in said
    sizes = [Path(path).stat().st_size for path in (out, files.checkpoint)]
    assert sizes[0] < sizes[1], 'what goes back takes its offset branches along'
    loaded = torch.load(out, weights_only=True)
    assert not any('1.conv1.conv_offset' in key or '0.conv2.conv_offset' in key for key in loaded['state_dict'])
    assert Config.fromfile(tmp_path / 'back.py').load_from == str(out)


@pytest.mark.parametrize(
    'setting,options,message',
    [
        ('val_dataloader', [], 'the config has no val_dataloader: give pictures to look at with --images'),
        (
            'val_evaluator',
            ['--validate'],
            'the config has no val_evaluator, without which there is nothing to validate',
        ),
        ('test_dataloader', ['--images'], 'the config has no test_dataloader, whose pipeline loads pictures'),
    ],
)
def test_a_setting_that_is_needed_is_named(setting, options, message, files, pictures, tmp_path):
    cfg = Config.fromfile(files.config)
    cfg[setting] = None
    cfg.dump(tmp_path / 'c.py')
    options = [word for option in options for word in ([option, pictures] if option == '--images' else [option])]
    with pytest.raises(ConfigError, match=message):
        _revert(tmp_path / 'c.py', files.checkpoint, tmp_path / 'b.pth', *options)
    assert not (tmp_path / 'b.pth').exists()


def test_a_damaged_picture_is_named(files, pictures, tmp_path):
    (pictures / '0.jpg').write_text('no picture')
    with pytest.raises(DataError, match=r'0\.jpg cannot be read as a picture'):
        _revert(files.config, files.checkpoint, tmp_path / 'b.pth', '--images', pictures)


def test_a_delta_is_named(files, tmp_path):
    make_delta(files.baseline, files.checkpoint, str(tmp_path / 'd.safetensors'))
    with pytest.raises(CheckpointError, match='it is a delta, which holds only what an upgrade changed'):
        _revert(files.config, tmp_path / 'd.safetensors', tmp_path / 'b.pth')


def test_a_folder_without_pictures_is_refused(files, pictures, tmp_path):
    for path in pictures.glob('*.JPG'):
        path.unlink()
    with pytest.raises(ConfigError, match=r'holds no pictures \(\.jpg'):
        _revert(files.config, files.checkpoint, tmp_path / 'b.pth', '--images', pictures)
    with pytest.raises(ConfigError, match='there is no such folder'):
        _revert(files.config, files.checkpoint, tmp_path / 'b.pth', '--images', tmp_path / 'none')
    assert not (tmp_path / 'b.pth').exists()
