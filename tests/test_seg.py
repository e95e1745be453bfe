"""MMSegmentation: schedules by iterations, masks, and a DeepLabV3 from its baseline to the fine-tuned upgrade."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.apis import MMSegInferencer, inference_model, init_model
from mmseg.datasets import BaseSegDataset, PascalVOCDataset
from mmseg.evaluation import IoUMetric

from benchmarks.datasets import SHAPE_CLASSES, SHAPE_OPTIONS, compose_shapes
from mmdeform_upgrade.analysis.look import layers_up_to, look
from mmdeform_upgrade.checkpoint import file_sha256
from mmdeform_upgrade.layers import upgraded_layers
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.preflight import load_network
from mmdeform_upgrade.readers import read_checkpoint

from .conftest import ROOT, relative_error, run_tool

LAYERS = [f'backbone.layer4.{i}' for i in ('0.conv2', '1.conv1', '1.conv2')]


@pytest.fixture(scope='module')
def seg_config(shapes, tmp_path_factory):
    """Path of a config like the demo's segmentor, tiny: 8 iterations of 4 pictures."""
    cfg = Config.fromfile(ROOT / 'benchmarks/demo/configs/deeplabv3_r18_shapes.py')
    cfg.model.backbone.update(base_channels=8, stem_channels=8)
    cfg.model.decode_head.update(in_channels=64, channels=16)
    cfg.model.auxiliary_head.update(in_channels=32, channels=8)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(shapes) + '/'
    cfg.test_dataloader.dataset.ann_file = cfg.val_dataloader.dataset.ann_file
    cfg.train_cfg.update(max_iters=8, val_interval=8)
    cfg.param_scheduler = [dict(type='PolyLR', eta_min=1e-5, power=0.9, begin=0, end=8, by_epoch=False)]
    cfg.default_hooks.checkpoint.update(interval=4, max_keep_ckpts=-1, save_best='mIoU')
    cfg.default_hooks.logger.interval = 1
    path = tmp_path_factory.mktemp('seg') / 'seg.py'
    cfg.dump(path)
    return path


@pytest.fixture(scope='module')
def seg_baseline(seg_config, shapes):
    """Checkpoint and log of the tiny segmentor's training.

    So short a training may find a single class everywhere, which would hide any difference between two networks: the
    checkpoint's logits are centred on one picture, where no class can then be the largest at every pixel.
    """
    log = run_tool('train.py', seg_config, '--work-dir', seg_config.parent / 'baseline').stdout
    path = seg_config.parent / 'baseline' / 'iter_8.pth'
    logits = inference_model(init_model(str(seg_config), str(path), device='cpu'), _picture(shapes)).seg_logits.data
    checkpoint = read_checkpoint(path)
    checkpoint['state_dict']['decode_head.conv_seg.bias'] -= logits.mean((1, 2))
    torch.save(checkpoint, path)
    return path, log


@pytest.fixture(scope='module')
def seg_upgrade(seg_config, seg_baseline):
    """Config that tools/upgrade.py writes for it, and the plan that it prints."""
    out = seg_config.with_name('upgrade.py')
    return out, run_tool('upgrade.py', seg_config, seg_baseline[0], '--out', out).stdout


@pytest.fixture(scope='module')
def fine_tuned(seg_upgrade):
    """Checkpoint and log of the upgrade's fine-tune: 2 iterations."""
    work_dir = seg_upgrade[0].with_name('upgrade')
    log = run_tool('train.py', seg_upgrade[0], '--work-dir', work_dir).stdout
    return work_dir / 'iter_2.pth', log


def _config(path, checkpoint, work_dir, **options):
    cfg = Config.fromfile(path)
    cfg.merge_from_dict({'work_dir': str(work_dir), 'load_from': str(checkpoint), 'log_level': 'WARNING', **options})
    cfg.experiment_name = f'seg{torch.rand(1).item()}'
    return cfg


def _scores(path, checkpoint, work_dir):
    """Test scores of whole pictures and of sliding windows, from one runner run twice."""
    runner = Runner.from_cfg(_config(path, checkpoint, work_dir))
    whole = runner.test()
    runner.model.test_cfg = ConfigDict(mode='slide', crop_size=(64, 64), stride=(32, 32))
    return whole, runner.test()


def _picture(shapes):
    return str(sorted((shapes / 'VOC2007/JPEGImages').glob('*.jpg'))[0])


def test_masks_are_read_with_their_ignored_border(tmp_path):
    compose_shapes(tmp_path / 'd', train=4, val=0, test=0, size=64, options=replace(SHAPE_OPTIONS, border=2))
    init_default_scope('mmseg')
    settings = dict(
        data_root=str(tmp_path / 'd/VOC2007'),
        ann_file='ImageSets/Segmentation/train.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
    )
    classes = ('background', *SHAPE_CLASSES)
    dataset = BaseSegDataset(img_suffix='.jpg', seg_map_suffix='.png', metainfo=dict(classes=classes), **settings)
    truths = [item['data_samples'].gt_sem_seg.data for item in dataset]
    assert len(truths) == 4 and all({0, 255} < set(truth.unique().tolist()) <= {*range(7), 255} for truth in truths)
    # The same files, layout and suffixes are what PascalVOCDataset expects; only its class names are fixed.
    voc = PascalVOCDataset(**settings)
    assert all(
        torch.equal(item['data_samples'].gt_sem_seg.data, truth) for item, truth in zip(voc, truths, strict=True)
    )
    with pytest.raises(ValueError, match='is not a subset of classes'):
        PascalVOCDataset(metainfo=dict(classes=classes), **settings)

    metric = IoUMetric()
    metric.dataset_meta = dataset.metainfo
    for truth in truths:  # wrong at ignored pixels, right elsewhere
        wrong = torch.where(truth == 255, 3, truth)
        metric.process({}, [dict(pred_sem_seg=dict(data=wrong), gt_sem_seg=dict(data=truth))])
    assert np.isclose(metric.evaluate(len(truths))['aAcc'], 100)


def test_a_segmentor_trains_by_iterations_with_both_heads(seg_baseline):
    checkpoint, log = seg_baseline
    assert re.search(r'Iter\(train\) \[8/8\].*decode\.loss_ce: .*aux\.loss_ce: ', log)
    # The stock norm is SyncBN; the runner reverts it where there is one process.
    assert 'reverted to BatchNormXd' in log
    assert any(key.startswith('auxiliary_head') for key in read_checkpoint(checkpoint)['state_dict'])


def test_the_plan_names_iterations(seg_upgrade):
    _, plan = seg_upgrade
    assert '8 iterations; AdamW' in plan and '2 iterations; AdamW' in plan and 'validation every 2' in plan
    assert '6 offset tensors start at zero' in plan and all(name in plan for name in LAYERS)


def test_the_upgraded_segmentor_scores_exactly_the_baseline(
    seg_config, seg_baseline, seg_upgrade, fine_tuned, tmp_path
):
    before = _scores(seg_config, seg_baseline[0], tmp_path / 'b')
    assert before == _scores(seg_upgrade[0], seg_baseline[0], tmp_path / 'a')
    assert before[0] != before[1] and len(set(before[0].values())) == 3
    assert (
        'the upgrade scores, as the baseline does: '
        + ', '.join(f'{key} {value:.4f}' for key, value in before[0].items())
        in fine_tuned[1]
    )


def test_logits_of_the_untouched_upgrade_are_the_baselines(seg_config, seg_baseline, seg_upgrade, shapes):
    picture = _picture(shapes)
    plain = init_model(str(seg_config), str(seg_baseline[0]), device='cpu')
    upgraded = init_model(str(seg_upgrade[0]), str(seg_baseline[0]), device='cpu')
    assert list(upgraded_layers(upgraded)) == LAYERS and plain.with_auxiliary_head
    logits = [inference_model(model, picture).seg_logits.data for model in (plain, upgraded)]
    assert relative_error(logits[1], logits[0]) < 1e-5
    assert logits[0].argmax(0).unique().numel() > 1, 'a network that says one class everywhere shows nothing'


def test_the_fine_tune_moves_the_offsets_and_records_where_it_came_from(seg_baseline, fine_tuned):
    checkpoint = read_checkpoint(fine_tuned[0])
    offsets = {key: value for key, value in checkpoint['state_dict'].items() if 'conv_offset' in key}
    assert len(offsets) == 6 and all(value.any() for value in offsets.values())
    provenance = checkpoint['meta']['deform_upgrade']
    assert provenance['baseline'] == 'iter_8.pth' and provenance['baseline_sha256'] == file_sha256(seg_baseline[0])
    assert list(provenance['layers']) == LAYERS and 0 < provenance['before_training']['mIoU'] <= 100
    assert checkpoint['meta']['iter'] == 2
    assert re.search(r'best checkpoint with .* mIoU at 0 iter', fine_tuned[1])


def test_inference_apis_load_the_upgraded_segmentor(seg_upgrade, fine_tuned, shapes):
    config, picture = str(seg_upgrade[0]), _picture(shapes)
    model = init_model(config, str(fine_tuned[0]), device='cpu')
    saved = read_checkpoint(fine_tuned[0])['state_dict']
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    assert model.dataset_meta['classes'] == ('background', *SHAPE_CLASSES)
    expected = inference_model(model, picture).pred_sem_seg.data[0].numpy()
    inferencer = MMSegInferencer(
        config,
        str(fine_tuned[0]),
        device='cpu',
        classes=list(model.dataset_meta['classes']),
        palette=model.dataset_meta['palette'],
    )
    assert np.array_equal(inferencer(picture, show=False)['predictions'], expected)


def test_a_bare_state_dict_and_a_config_without_a_test_pipeline_will_do(seg_upgrade, fine_tuned, shapes, tmp_path):
    state = read_checkpoint(fine_tuned[0])['state_dict']
    torch.save({f'_orig_mod.{key}': value for key, value in state.items()}, tmp_path / 'bare.pth')
    cfg = Config.fromfile(seg_upgrade[0])
    cfg.pop('test_pipeline')
    cfg.dump(tmp_path / 'config.py')
    model = load_network(str(tmp_path / 'config.py'), str(tmp_path / 'bare.pth'))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [record.layer for record in layers_up_to(model, look(model, _picture(shapes)))] == LAYERS


def test_test_time_augmentation_of_the_upgraded_segmentor(seg_upgrade, fine_tuned, tmp_path):
    cfg = _config(seg_upgrade[0], fine_tuned[0], tmp_path)
    cfg.tta_pipeline[1].transforms[0] = cfg.tta_pipeline[1].transforms[0][:1]  # one scale, flipped or not
    command_line.set_tta(cfg)
    cfg.test_dataloader.batch_size = 1
    cfg.custom_hooks = []
    runner = Runner.from_cfg(cfg)
    assert type(runner.model).__name__ == 'SegTTAModel' and len(upgraded_layers(runner.model)) == 3
    assert 0 < runner.test()['mIoU'] <= 100


def test_resume_goes_on_at_its_iteration(seg_upgrade, fine_tuned, tmp_path):
    cfg = _config(seg_upgrade[0], fine_tuned[0].with_name('iter_1.pth'), tmp_path, resume=True)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2
    whole, resumed = read_checkpoint(fine_tuned[0]), read_checkpoint(tmp_path / 'iter_2.pth')
    assert resumed['meta']['deform_upgrade'] == whole['meta']['deform_upgrade']
    assert resumed['optimizer']['param_groups'][0]['lr'] == whole['optimizer']['param_groups'][0]['lr']
    assert any(value.any() for key, value in resumed['state_dict'].items() if 'conv_offset' in key)
