"""Test-time augmentation of an upgraded network, with the hook in the config."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.mm.command_line import set_tta

from ..conftest import ROOT
from .conftest import build_runner, offsets, train

DETECTOR = dict(
    tta_model=dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    tta_pipeline=[
        dict(type='LoadImageFromFile'),
        dict(
            type='TestTimeAug',
            transforms=[
                [dict(type='Resize', scale_factor=1.0, keep_ratio=True)],
                [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
                [dict(type='LoadAnnotations', with_bbox=True)],
                [
                    dict(
                        type='PackDetInputs',
                        meta_keys=(
                            'img_id',
                            'img_path',
                            'ori_shape',
                            'img_shape',
                            'scale_factor',
                            'flip',
                            'flip_direction',
                        ),
                    )
                ],
            ],
        ),
    ],
)
SEGMENTOR = dict(
    tta_model=dict(type='SegTTAModel'),
    tta_pipeline=[
        dict(type='LoadImageFromFile'),
        dict(
            type='TestTimeAug',
            transforms=[
                [
                    dict(type='RandomFlip', prob=0.0, direction='horizontal'),
                    dict(type='RandomFlip', prob=1.0, direction='horizontal'),
                ],
                [dict(type='LoadAnnotations')],
                [dict(type='PackSegInputs')],
            ],
        ),
    ],
)


@pytest.fixture
def detector(short_cfg, tiny_upgrade):
    """Config and checkpoint of a trained upgrade, with offsets that matter."""
    runner = train(short_cfg, [dict(type='EMAHook')])
    for value in offsets(dict(runner.model.named_parameters())).values():
        torch.nn.init.normal_(value, std=0.05)
    torch.save({'meta': {}, 'state_dict': runner.model.state_dict()}, path := f'{runner.work_dir}/moved.pth')
    cfg = Config.fromfile(tiny_upgrade)
    cfg.merge_from_dict(copy.deepcopy(DETECTOR))
    cfg.custom_hooks.append(dict(type='EMAHook'))
    cfg.work_dir = short_cfg.work_dir
    return cfg, path


def _tool():
    spec = importlib.util.spec_from_file_location('tools_test', ROOT / 'tools' / 'test.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_test_tool_augments_with_exactly_the_trained_network(detector, monkeypatch):
    cfg, path = detector
    cfg.dump(config := f'{path}.py')
    held, tool = [], _tool()
    build = tool.command_line.build_runner

    def remembered(cfg):
        held.append(build(cfg))
        return held[0]

    monkeypatch.setattr(tool.command_line, 'build_runner', remembered)
    before = Path(config).read_text()
    tool.main([config, path, '--tta', '--work-dir', str(Path(path).parent)])
    assert Path(config).read_text() == before, 'the config of the training in its folder'
    assert Config.fromfile(config.replace('.py', '-test.py')).model.type == 'DetTTAModel'
    runner, saved = held[0], torch.load(path, weights_only=True)['state_dict']
    assert type(runner.model).__name__ == 'DetTTAModel'
    state = runner.model.module.state_dict()
    assert state.keys() == saved.keys() and all(torch.equal(value, saved[key]) for key, value in state.items())
    assert 0 <= runner.message_hub.get_scalar('test/pascal_voc/mAP').current() <= 1


def test_a_baseline_under_the_upgraded_config_is_augmented_with_zero_offsets(detector, tiny_baseline):
    cfg, _ = detector
    set_tta(cfg)
    cfg.load_from = str(tiny_baseline)
    cfg.test_dataloader.dataset.indices = 4
    runner = build_runner(cfg)
    runner.test()
    assert not any(value.any() for value in offsets(runner.model.state_dict()).values())


def test_a_segmentor_is_augmented_with_its_loaded_offsets(segmentor_cfg):
    trained = train(segmentor_cfg)
    cfg = trained.cfg.copy()
    cfg.custom_hooks = [dict(type='DeformUpgradeHook')]
    cfg.merge_from_dict(copy.deepcopy(SEGMENTOR))
    cfg.update(
        test_dataloader=cfg.train_dataloader, test_cfg=dict(type='TestLoop'), test_evaluator=dict(type='IoUMetric')
    )
    set_tta(cfg)
    runner = build_runner(cfg, load_from=f'{trained.work_dir}/epoch_1.pth')
    assert 0 <= runner.test()['mIoU'] <= 100
    state = runner.model.module.state_dict()
    assert type(runner.model).__name__ == 'SegTTAModel'
    assert all(torch.equal(value, state[key]) for key, value in trained.model.state_dict().items())


def test_augmentation_goes_to_the_innermost_data_sets_and_needs_its_settings(tiny_upgrade):
    cfg = Config.fromfile(tiny_upgrade)
    with pytest.raises(ConfigError, match='--tta needs tta_model and tta_pipeline'):
        set_tta(cfg)
    cfg.merge_from_dict(copy.deepcopy(DETECTOR))
    repeated = dict(type='RepeatDataset', times=1, dataset=cfg.test_dataloader.dataset)
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[repeated, copy.deepcopy(repeated)])
    set_tta(cfg)
    assert all(given.dataset.pipeline == cfg.tta_pipeline for given in cfg.test_dataloader.dataset.datasets)
    assert cfg.model.type == 'DetTTAModel' and cfg.model.module.backbone.type == 'DeformUpgrade'
