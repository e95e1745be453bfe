"""The hook inside MMEngine's real runner, on a tiny detector and generated pictures."""

import copy
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmdeform_upgrade.errors import CheckpointError, ConfigError
from mmdeform_upgrade.layers import upgraded_layers
from mmdeform_upgrade.readers import read_checkpoint

from .conftest import run_tool


def _runner(cfg, **options):
    cfg = copy.deepcopy(cfg)
    cfg.experiment_name = f'run{len(list(Path(cfg.work_dir).parent.iterdir()))}_{torch.rand(1).item()}'
    cfg.merge_from_dict(options)
    return Runner.from_cfg(cfg)


def _offsets(model):
    return {k: v for k, v in model.state_dict().items() if 'conv_offset' in k}


@pytest.fixture(scope='module')
def trained(tiny_upgrade, tmp_path_factory):
    """Work directory of one whole fine-tune through tools/train.py, with an EMA copy."""
    work_dir = tmp_path_factory.mktemp('trained')
    config = tiny_upgrade.with_name('tiny_upgrade_ema.py')
    config.write_text(
        f"_base_ = ['{tiny_upgrade.name}']\n"
        "custom_hooks = [dict(type='EMAHook', momentum=0.5), dict(type='DeformUpgradeHook')]\n"
    )
    result = run_tool('train.py', config, '--work-dir', work_dir)
    return config, work_dir, result.stdout + result.stderr


def test_the_upgrade_scores_exactly_the_baseline_before_its_first_step(trained, tiny_config, tiny_baseline, tmp_path):
    _, _, log = trained
    baseline = run_tool(
        'test.py',
        tiny_config,
        tiny_baseline,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'test_dataloader.dataset.ann_file=VOC2007/ImageSets/Main/val.txt',
    ).stdout
    scores = [re.findall(r'pascal_voc/mAP: (\S+)', text)[0] for text in (log, baseline)]
    assert scores[0] == scores[1]
    assert 'Before its first step the upgrade scores, as the baseline does: pascal_voc/mAP' in log


def test_offsets_train_and_reach_the_checkpoint_and_the_ema_copy(trained):
    _, work_dir, log = trained
    checkpoint = read_checkpoint(work_dir / 'epoch_2.pth')
    for part in ('state_dict', 'ema_state_dict'):
        offsets = {k: v for k, v in checkpoint[part].items() if 'conv_offset' in k}
        assert len(offsets) == 6, part
        assert all(value.abs().sum() > 0 for value in offsets.values()), part
    assert 'Baseline of' in log and '6 offset tensors added as zeros' in log


def test_provenance_is_saved(trained, tiny_baseline):
    from mmdeform_upgrade.checkpoint import file_sha256

    _, work_dir, _ = trained
    provenance = read_checkpoint(work_dir / 'epoch_2.pth')['meta']['deform_upgrade']
    assert provenance['baseline'] == 'epoch_1.pth'
    assert provenance['baseline_sha256'] == file_sha256(tiny_baseline)
    assert list(provenance['layers']) == [f'backbone.layer4.{i}' for i in ('0.conv2', '1.conv1', '1.conv2')]
    assert 0 <= provenance['before_training']['pascal_voc/mAP'] <= 1


def test_a_validation_without_a_number_is_said_to_have_none(tiny_upgrade_cfg, tmp_path):
    cfg = copy.deepcopy(tiny_upgrade_cfg)
    cfg.val_evaluator = dict(type='DumpResults', out_file_path=str(tmp_path / 'detections.pkl'))
    runner = _runner(cfg)
    runner.call_hook('before_run')
    runner.load_or_resume()
    runner.call_hook('before_train')
    runner.call_hook('before_train_epoch')
    log = Path(runner.log_dir, f'{runner.timestamp}.log').read_text()
    assert 'scores, as the baseline does: nothing, since its evaluator gave no number' in log


def test_a_finished_upgrade_is_loaded_as_it_is(trained, tmp_path):
    config, work_dir, _ = trained
    cfg = Config.fromfile(config)
    cfg.work_dir, cfg.load_from = str(tmp_path / 'w'), str(work_dir / 'epoch_2.pth')
    runner = _runner(cfg)
    runner.call_hook('before_run')
    runner.load_or_resume()
    runner.call_hook('before_train')
    saved = read_checkpoint(cfg.load_from)['state_dict']
    assert all(torch.equal(value, saved[key]) for key, value in runner.model.state_dict().items())
    assert any(value.any() for value in _offsets(runner.model).values())


def test_inference_apis_load_the_upgrade_from_its_config_alone(trained, shapes):
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    config, work_dir, _ = trained
    picture = str(sorted((shapes / 'VOC2007/JPEGImages').glob('*.jpg'))[0])
    checkpoint = str(work_dir / 'epoch_2.pth')
    model = init_detector(str(config), checkpoint, device='cpu')
    assert len(upgraded_layers(model)) == 3
    instances = inference_detector(model, picture).pred_instances
    assert len(instances) > 0
    prediction = DetInferencer(str(config), checkpoint, device='cpu')(picture, no_save_vis=True)['predictions'][0]
    assert prediction['scores'] == pytest.approx(instances.scores.tolist(), abs=1e-6)

    cfg = Config.fromfile(config)
    cfg.work_dir, cfg.load_from = str(work_dir / 'runner'), checkpoint
    runner = _runner(cfg)
    runner.call_hook('before_run')
    runner.load_or_resume()
    saved = runner.model.eval()
    saved.cfg = model.cfg
    assert torch.equal(inference_detector(saved, picture).pred_instances.bboxes, instances.bboxes)


def test_resume_goes_on_where_the_run_was_cut(trained, tiny_baseline, tmp_path):
    config, work_dir, _ = trained
    first = run_tool('train.py', config, '--work-dir', tmp_path, '--cfg-options', 'train_cfg.max_epochs=1')
    assert re.search(r'Epoch\(train\)\s+\[1\]', first.stdout)
    second = run_tool('train.py', config, '--work-dir', tmp_path, '--resume').stdout
    assert 'resumed epoch: 1, iter: 4' in second
    assert not re.search(r'Epoch\(train\)\s+\[1\]|tensors added|before its first', second)
    assert re.search(r'Epoch\(train\)\s+\[2\]\[4/4\]\s+(?:base_)?lr: 1\.5000e-05', second), 'the schedule goes on, too'
    whole, resumed = (read_checkpoint(folder / 'epoch_2.pth') for folder in (work_dir, tmp_path))
    assert resumed['meta']['deform_upgrade'] == whole['meta']['deform_upgrade']
    assert resumed['meta']['iter'] == whole['meta']['iter'] == 8
    first, start = (read_checkpoint(path)['state_dict'] for path in (tmp_path / 'epoch_1.pth', tiny_baseline))
    key = 'backbone.layer4.1.conv2.weight'
    moved = (first[key] - start[key]).abs().max()
    assert 0 < (resumed['state_dict'][key] - first[key]).abs().max() < moved, 'a tenth of the rate, from epoch 1 on'


def test_resuming_an_empty_folder_starts_the_upgrade(tiny_upgrade, tmp_path):
    log = run_tool(
        'train.py', tiny_upgrade, '--work-dir', tmp_path, '--resume', '--cfg-options', 'train_cfg.max_epochs=1'
    ).stdout
    assert '6 offset tensors added as zeros' in log


def test_scoring_first_changes_nothing_in_the_training(tiny_upgrade_cfg):
    states = []
    for score in (True, False):
        cfg = copy.deepcopy(tiny_upgrade_cfg)
        cfg.train_cfg.max_epochs = 1
        cfg.param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='pascal_voc/mAP', rule='greater')]
        cfg.custom_hooks[1].val_before_train = score
        cfg.work_dir += str(score)
        runner = _runner(cfg)
        runner.train()
        states.append(runner.model.state_dict())
        assert runner.param_schedulers[0].last_step == -1  # it counts validations
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_optimizer_holds_every_offset(tiny_upgrade_cfg):
    for key in ('constructor', 'offset_optimizer'):
        tiny_upgrade_cfg.optim_wrapper.pop(key, None)
    tiny_upgrade_cfg.optim_wrapper.paramwise_cfg = dict(custom_keys={'conv_offset': dict(lr_mult=0.1)})
    runner = _runner(tiny_upgrade_cfg)
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    rates = {id(p): group['lr'] for group in wrapper.optimizer.param_groups for p in group['params']}
    base = tiny_upgrade_cfg.optim_wrapper.optimizer.lr
    for name, parameter in runner.model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(base * (0.1 if 'conv_offset' in name else 1)), name


def _spoiled(tiny_baseline, tmp_path):
    checkpoint = read_checkpoint(tiny_baseline)
    state = checkpoint['state_dict']
    del state['backbone.layer1.0.conv1.weight']
    state['backbone.layer9.weight'] = torch.ones(1)
    state['bbox_head.cls_convs.0.0.weight'] = torch.ones(2, 2, 3, 3)
    torch.save(checkpoint, tmp_path / 'spoiled.pth')
    return str(tmp_path / 'spoiled.pth')


def test_a_baseline_that_does_not_fit_is_refused_with_every_problem(tiny_upgrade_cfg, tiny_baseline, tmp_path):
    runner = _runner(tiny_upgrade_cfg, load_from=_spoiled(tiny_baseline, tmp_path))
    problems = '(?s)layer1.0.conv1.weight.*backbone.layer9.weight.*cls_convs.0.0.weight: the checkpoint has'
    with pytest.raises(CheckpointError, match=problems):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize(
    'change,error,message',
    [
        (dict(load_from=None), ConfigError, 'no checkpoint was loaded'),
        (dict(load_from=None, resume=True), ConfigError, 'there is no checkpoint in'),
        (dict(load_from='s3://bucket/x.pth'), ConfigError, 'local file or an http'),
        (dict(load_from='nothing.pth'), CheckpointError, "there is no file 'nothing.pth'"),
    ],
)
def test_runs_that_could_not_start_from_a_baseline_are_refused(tiny_upgrade_cfg, change, error, message):
    with pytest.raises(error, match=message):
        _runner(tiny_upgrade_cfg, **change).train()


def test_a_checkpoint_that_a_program_loads_itself_is_fitted_and_cannot_be_trained_from(tiny_upgrade_cfg, tiny_baseline):
    runner = _runner(tiny_upgrade_cfg, load_from=None)
    runner.load_checkpoint(str(tiny_baseline))
    baseline = read_checkpoint(tiny_baseline)['state_dict']
    assert all(torch.equal(runner.model.state_dict()[key], value) for key, value in baseline.items())
    with pytest.raises(CheckpointError, match='Give the checkpoint as load_from: .* runner.train initialises anew'):
        runner.train()


def test_resuming_from_a_baseline_is_refused(tiny_upgrade_cfg, tiny_baseline):
    found = 'has no backbone.*conv_offset.*, so it is a baseline and not an interrupted upgrade'
    with pytest.raises(CheckpointError, match=f'{found}.*; to resume the run of .*, set load_from=None'):
        _runner(tiny_upgrade_cfg, load_from=str(tiny_baseline), resume=True).train()


def test_deformable_layers_in_blocks_that_merge_for_deployment_are_refused(tiny_upgrade_cfg):
    runner = _runner(tiny_upgrade_cfg)
    block = runner.model.backbone.layer4[1]
    block.__class__ = type('Merging', (type(block),), {'switch_to_deploy': lambda self: None})
    with pytest.raises(ConfigError, match='Merging.switch_to_deploy merges branches for deployment, where the offsets'):
        runner.train()


def test_a_network_without_deformable_layers_is_refused(tiny_config, tiny_baseline, tmp_path):
    cfg = Config.fromfile(tiny_config)
    cfg.work_dir, cfg.load_from = str(tmp_path), str(tiny_baseline)
    cfg.custom_hooks = [dict(type='DeformUpgradeHook')]
    with pytest.raises(ConfigError, match='the model has no ZeroOffsetDCN'):
        _runner(cfg).train()


def test_offsets_are_zero_whatever_initialised_them(tiny_upgrade_cfg):
    tiny_upgrade_cfg.model.init_cfg = dict(type='Normal', layer=['OffsetBranch', 'Conv2d'], std=1)
    runner = _runner(tiny_upgrade_cfg)
    runner.call_hook('before_run')
    runner._init_model_weights()
    assert any(v.any() for v in _offsets(runner.model).values()), 'the initialiser reached them'
    runner.load_or_resume()
    runner.call_hook('before_train')
    assert not any(v.any() for v in _offsets(runner.model).values())


def test_a_warm_up_that_is_longer_than_the_training_is_told(tiny_upgrade_cfg):
    warm_up = dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=125)
    runner = _runner(tiny_upgrade_cfg, param_scheduler=[warm_up])
    steps = runner.train_loop.max_iters
    runner.call_hook('before_run')
    runner.load_or_resume()
    runner.call_hook('before_train')
    log = Path(runner.log_dir, f'{runner.timestamp}.log').read_text()
    assert f'The warm-up lasts 125 iterations and the training {steps}, so the rates that were planned' in log
