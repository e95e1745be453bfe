"""Every config of the repository loads, builds and holds what it says."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from mmcv.ops import batched_nms
from mmengine.config import Config

from mmdeform_upgrade import upgrade_config
from mmdeform_upgrade.config import Length, read_config
from mmdeform_upgrade.layers import upgraded_layers

from .conftest import ROOT, build

LEAVES = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)


def _no_downloads(cfg):
    cfg.model.backbone.init_cfg = None
    cfg.model.pop('pretrained', None)


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: str(p.relative_to(ROOT / 'configs')))
def test_config_builds(path):
    cfg = Config.fromfile(path)
    _no_downloads(cfg)
    with torch.device('meta'):
        assert upgraded_layers(build(cfg)) or 'DeformUpgrade' not in path.read_text()
    assert Length.of(cfg).total > 0
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.type


def test_the_papers_three_experiments_differ_in_nothing_else():
    names = ('ssd/ssd512_r50_240e_voc0712.py', 'ssd/ssd512_r50-dcn_240e_voc0712.py', 'ssd512_upgrade.py')
    baseline, retrained, upgrade = (Config.fromfile(ROOT / 'configs' / name) for name in names)
    optimizer = dict(type='SGD', lr=0.001, momentum=0.8, weight_decay=5e-4)
    assert baseline.optim_wrapper.optimizer == retrained.optim_wrapper.optimizer == optimizer
    schedules = [(c.train_cfg.max_epochs, *c.param_scheduler[0].milestones) for c in (baseline, retrained, upgrade)]
    assert schedules == [(240, 160, 200), (240, 160, 200), (60, 40, 50)]
    for cfg in (retrained, upgrade):
        cfg.model.backbone.init_cfg = None
    layers = [list(upgraded_layers(build(cfg))) for cfg in (retrained, upgrade)]
    assert layers[0] == layers[1] == [f'backbone.layer4.{i}.conv2' for i in range(3)]
    assert baseline.train_dataloader == retrained.train_dataloader == upgrade.train_dataloader
    datasets = baseline.train_dataloader.dataset.datasets
    assert [d.ann_file for d in datasets] == [f'VOC{y}/ImageSets/Main/trainval.txt' for y in (2007, 2012)]
    assert baseline.val_dataloader.dataset.ann_file == 'VOC2007/ImageSets/Main/test.txt'
    assert baseline.val_dataloader.dataset.data_root == 'data/VOCdevkit/'


@pytest.mark.parametrize('path', sorted((ROOT / 'configs' / 'gluoncv').glob('*.py')), ids=lambda p: p.stem)
def test_gluoncvs_settings_are_those_of_its_logs(path):
    cfg, ssd = Config.fromfile(path), path.stem.startswith('ssd')
    assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53] and cfg.model.data_preprocessor.bgr_to_rgb
    assert cfg.model.data_preprocessor.std == [58.395, 57.12, 57.375]
    coco = path.stem.endswith('coco')
    assert cfg.model.bbox_head.num_classes == (80 if coco else 20)
    assert cfg.val_dataloader.dataset.type == ('CocoDataset' if coco else 'VOCDataset')
    assert coco or (cfg.val_evaluator.eval_mode == '11points' and 'VOC2007' in cfg.val_dataloader.dataset.ann_file)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (0.001, 0.9, 5e-4)
    schedule = (cfg.train_cfg.max_epochs, *cfg.param_scheduler[-1].milestones, cfg.auto_scale_lr.base_batch_size)
    assert schedule == ((240, 160, 200, 32) if ssd else (280, 220, 250, 64) if coco else (200, 160, 180, 64))
    test = cfg.model.test_cfg
    assert (test.score_thr, test.nms.iou_threshold, test.max_per_img) == (0.01, 0.45, 100) and test.nms_pre >= 400


# Trap: mmcv tells classes apart by shifting boxes, by no more than the largest coordinate.
def test_boxes_outside_the_picture_do_not_suppress_those_of_another_class():
    nms = dict(Config.fromfile(ROOT / 'configs/gluoncv/ssd512_r50_voc.py').model.test_cfg.nms)
    boxes = torch.tensor([[400.0, 400.0, 512.0, 512.0], [-113.0, -113.0, -1.0, -1.0]])
    scores, labels = torch.tensor([0.9, 0.8]), torch.tensor([0, 1])
    assert len(batched_nms(boxes, scores, labels, nms)[1]) == 2
    del nms['split_thr']
    assert len(batched_nms(boxes, scores, labels, nms)[1]) == 1, 'split_thr is no longer needed'


def test_leaves_are_short():
    for path in LEAVES:
        settings = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith('#')]
        assert len(settings) <= (40 if path.parent.name == 'zoo' else 16), path


@pytest.mark.parametrize('path', sorted((ROOT / 'configs' / 'zoo').glob('*.py')), ids=lambda path: path.stem)
def test_upgrades_of_the_model_zoo_are_what_the_tool_would_write(path):
    cfg = Config.fromfile(path)
    (base,) = re.findall(r"'(mm\w+::.*?)'", path.read_text())
    assert cfg.load_from.startswith('https://download.openmmlab.com/') and cfg.load_from.endswith('.pth')
    settings = dict(load_from=cfg.load_from, targets=cfg.model.backbone.targets, guard=True)
    expected = upgrade_config(read_config(base), **settings)
    assert _without_scopes({key: cfg[key] for key in expected}) == _without_scopes(expected.to_dict())


def _without_scopes(node):
    if isinstance(node, dict):
        return {key: _without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return [_without_scopes(value) for value in node] if isinstance(node, (list, tuple)) else node


RES5 = [f'backbone.layer4.{i}.conv2' for i in range(3)]
SIX = [f'backbone.layer3.{i}.conv2' for i in (20, 21, 22)] + RES5
DEPTHS = {1: RES5[2:], 2: RES5[1:], 3: RES5, 6: SIX}


@pytest.mark.parametrize(
    'folder,baseline,unit,length',
    [
        ('faster_rcnn', 'faster-rcnn_r101-caffe-dc5_4xb4-12e_voc0712', 'epochs', 12),
        ('deeplabv3', 'deeplabv3_r101-d8_4xb4-20k_voc12aug-512x512', 'iters', 20000),
    ],
)
@pytest.mark.parametrize('layers', DEPTHS)
def test_the_papers_depths(folder, baseline, unit, length, layers):
    model, rest = baseline.split('_4xb4-')
    schedule, data = rest.split('_', 1)
    quarter = {'12e': '3e', '20k': '5k'}[schedule]
    base = Config.fromfile(ROOT / 'configs' / folder / f'{baseline}.py')
    retrained = Config.fromfile(ROOT / 'configs' / folder / f'{model}-dcn{layers}_4xb4-{rest}.py')
    upgrade = Config.fromfile(ROOT / 'configs' / folder / f'{model}-upgrade{layers}_4xb4-{quarter}_{data}.py')
    assert [Length.of(cfg) for cfg in (base, retrained, upgrade)] == [
        Length(length, unit),
        Length(length, unit),
        Length(length // 4, unit),
    ]
    targets = retrained.model.backbone.targets
    expected = upgrade_config(base, load_from=upgrade.load_from, targets=targets, offset_optimizer='same')
    for key in ('train_cfg', 'param_scheduler', 'default_hooks', 'custom_hooks', 'optim_wrapper', 'train_dataloader'):
        assert upgrade[key] == expected[key], key
    assert upgrade.load_from == f'work_dirs/{baseline}/{unit[:-1]}_{length}.pth'
    for cfg in (retrained, upgrade):
        _no_downloads(cfg)
        with torch.device('meta'):
            assert list(upgraded_layers(build(cfg))) == DEPTHS[layers]


UPGRADES = sorted(path for folder in ('ssd', 'yolov3') for path in (ROOT / 'configs' / folder).glob('*-upgrade*.py'))


@pytest.mark.parametrize('path', UPGRADES, ids=lambda path: path.stem)
def test_upgrades_of_the_papers_tables_are_what_the_tool_would_write(path):
    cfg = Config.fromfile(path)
    (base,) = Config._get_base_files(path)
    own = 'gluoncv' not in path.stem
    baseline = Config.fromfile(path.parent / base)
    quarter = cfg.train_cfg.max_epochs
    assert quarter == (50 if 'voc0712' in path.stem else 70)
    epochs = 4 * quarter
    if own:
        assert baseline.train_cfg.max_epochs == epochs
        assert cfg.load_from == f'work_dirs/{Path(base).stem}/epoch_{epochs}.pth'
    expected = upgrade_config(baseline, load_from=cfg.load_from, epoch_ratio=quarter / baseline.train_cfg.max_epochs)
    for key in ('model', 'train_cfg', 'param_scheduler', 'custom_hooks', 'train_dataloader', 'val_dataloader'):
        assert cfg[key] == expected[key], key
    with torch.device('meta'):
        _no_downloads(cfg)
        assert len(upgraded_layers(build(cfg))) == 3
    rate = cfg.optim_wrapper.optimizer.lr
    assert (rate, cfg.auto_scale_lr.base_batch_size) == ((0.01, 32) if path.stem.startswith('ssd') else (0.001, 64))


@pytest.mark.parametrize('table,rows', [('1-detection', 9), ('1-segmentation', 9), ('2', 3), ('3', 9), ('4', 12)])
def test_a_tables_script_trains_every_row_after_what_it_starts_from(table, rows):
    script = ROOT / 'benchmarks/compare/run_table.sh'
    printed = subprocess.run([script, table, '4', '--dry-run'], capture_output=True, text=True, check=True).stdout
    commands = [line.split() for line in printed.splitlines()]
    assert len(commands) == rows
    done = []
    for launcher, config, gpus, *flags in commands:
        assert Path(launcher).is_file() and gpus == '4' and flags[-1] == '--resume'
        start = Config.fromfile(config).get('load_from')
        assert start is None or start.endswith('.params') or str(Path(start).parent) in done, (config, start)
        done.append(flags[1])


@pytest.mark.parametrize('arguments', [[], ['5', '4'], ['2', 'four'], ['2', '4', '--now']])
def test_a_table_that_there_is_not_is_refused(arguments):
    result = subprocess.run([ROOT / 'benchmarks/compare/run_table.sh', *arguments], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith('usage: ') and not result.stdout
