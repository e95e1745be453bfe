"""Every loop, sampler and wrapper that MMEngine, mmdet and mmseg register, under both hooks: a short run, and a resume.

A part that is new in a framework has to be tried here, or to have its reason.
"""

import random
from importlib import import_module
from inspect import signature
from typing import ClassVar

import numpy as np
import pytest
import torch
from mmdet.datasets import BaseVideoDataset
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    LOOPS,
    MODEL_WRAPPERS,
    MODELS,
    RUNNERS,
    STRATEGIES,
    TRANSFORMS,
    DefaultScope,
)
from mmengine.runner import Runner

from mmdeform_upgrade.readers import read_checkpoint
from mmdeform_upgrade.release.revert import validate

from ..faults.tiny import save_tiny_baseline, tiny_config
from .conftest import _number
from .tiny_runs import same


def _sample(number):
    picture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(number)) + torch.rand(1) / 100
    return dict(picture=picture, truth=2 * picture.mean() + 1)


@DATASETS.register_module(force=True)
class TinyListed(BaseDataset):
    """What samplers ask for: shapes in two directions, categories of two kinds."""

    METAINFO: ClassVar = dict(classes=('a', 'b'))

    def load_data_list(self):
        return [dict(number=n, width=8 + n % 2, height=9 - n % 2, instances=[dict(bbox_label=n % 2)]) for n in range(8)]

    def get_cat_ids(self, idx):
        return [instance['bbox_label'] for instance in self.get_data_info(idx)['instances']]

    def prepare_data(self, idx):
        return _sample(self.get_data_info(idx)['number'])


@TRANSFORMS.register_module(force=True)
class TinyMix:
    """Mixes a picture with one drawn at random, as mosaics do."""

    def get_indices(self, dataset):
        return [random.randrange(len(dataset))]

    get_indexes = get_indices  # mmdet's name for it

    def __call__(self, results):
        weight = np.random.rand()
        other = results['mix_results'][0]
        return {key: weight * results[key] + (1 - weight) * other[key] for key in ('picture', 'truth')}


@DATASETS.register_module(force=True)
class TinyVideos(BaseVideoDataset):
    METAINFO: ClassVar = dict(classes=('a', 'b'))

    def load_data_list(self):
        frames = [dict(frame_id=n, img_id=n, width=8, height=9, instances=[]) for n in range(4)]
        return [dict(video_id=n, video_length=4, images=frames) for n in range(2)]

    def filter_data(self):
        return self.data_list

    def prepare_data(self, idx):
        video, frame = idx if isinstance(idx, tuple) else (idx, 0)
        return _sample(4 * int(video) + int(frame))


@MODELS.register_module(force=True)
class TinySemi(BaseModel):
    """Teacher and student, of which one predicts."""

    def __init__(self, detector, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.teacher, self.student = MODELS.build(detector), MODELS.build(detector)
        self.semi_test_cfg = dict(predict_on='teacher')

    def forward(self, picture, truth, mode='tensor'):
        network = self.student if mode == 'loss' else getattr(self, self.semi_test_cfg['predict_on'])
        return network(picture, truth, mode)


LISTED = dict(type='TinyListed', serialize_data=False)
PAIR = [LISTED, LISTED]
VIDEOS = dict(type='TinyVideos', ann_file='', serialize_data=False)
CONCAT = dict(type='mmdet.ConcatDataset', datasets=PAIR)
MIX = dict(dataset=LISTED, pipeline=[dict(type='TinyMix')])


def _loader(dataset, sampler, batch_sampler=None, batch_size=2):
    sampler = dict(type=sampler) if isinstance(sampler, str) else sampler
    loader = dict(num_workers=0, dataset=dataset, sampler=sampler, collate_fn=dict(type='default_collate'))
    return dict(loader, **(dict(batch_sampler=batch_sampler) if batch_sampler else dict(batch_size=batch_size)))


def _batches(kind, **settings):
    return dict(type=f'mmdet.{kind}', batch_size=2, **settings)


SHUFFLED = dict(type='DefaultSampler', shuffle=True)
# What is tried -> the training data.
DATA = {
    'EpochBasedTrainLoop': None,
    'DefaultSampler': _loader(LISTED, SHUFFLED),
    'AspectRatioBatchSampler': _loader(LISTED, SHUFFLED, _batches('AspectRatioBatchSampler')),
    'MultiDataAspectRatioBatchSampler': _loader(
        CONCAT,
        dict(type='mmdet.MultiDataSampler', dataset_ratio=[1, 1]),
        dict(type='mmdet.MultiDataAspectRatioBatchSampler', batch_size=[2, 2], num_datasets=2, drop_last=False),
    ),
    'MultiDataSampler': _loader(CONCAT, dict(type='mmdet.MultiDataSampler', dataset_ratio=[1, 1])),
    'ClassAwareSampler': _loader(LISTED, 'mmdet.ClassAwareSampler'),
    'CustomSampleSizeSampler': _loader(CONCAT, dict(type='mmdet.CustomSampleSizeSampler', dataset_size=[4, -1])),
    'TrackImgSampler': _loader(VIDEOS, 'mmdet.TrackImgSampler'),
    'TrackAspectRatioBatchSampler': _loader(VIDEOS, 'mmdet.TrackImgSampler', _batches('TrackAspectRatioBatchSampler')),
    'ConcatDataset': _loader(dict(type='ConcatDataset', datasets=PAIR), SHUFFLED),
    'RepeatDataset': _loader(dict(type='RepeatDataset', times=2, dataset=LISTED), SHUFFLED),
    'ClassBalancedDataset': _loader(dict(type='ClassBalancedDataset', oversample_thr=0.9, dataset=LISTED), SHUFFLED),
    'mmdet.MultiImageMixDataset': _loader(dict(MIX, type='mmdet.MultiImageMixDataset'), SHUFFLED),
    'mmseg.MultiImageMixDataset': _loader(dict(MIX, type='mmseg.MultiImageMixDataset'), SHUFFLED),
}
BY_ITERATION = {
    'IterBasedTrainLoop': _loader(LISTED, SHUFFLED),
    'InfiniteSampler': _loader(LISTED, 'InfiniteSampler'),
    'MultiSourceSampler': _loader(CONCAT, dict(type='mmdet.MultiSourceSampler', batch_size=2, source_ratio=[1, 1])),
    'GroupMultiSourceSampler': _loader(
        CONCAT, dict(type='mmdet.GroupMultiSourceSampler', batch_size=2, source_ratio=[1, 1])
    ),
}


# Its generator goes on from epoch to epoch, and no checkpoint holds it.
INEXACT = {'CustomSampleSizeSampler'}
ELSEWHERE = {
    'ValLoop': 'test_hooks.py',
    'TestLoop': 'test_hooks.py',
    'TeacherStudentValLoop': 'below',
    'Runner': 'above',
    'FlexibleRunner': 'test_parallel.py',
    'SingleDeviceStrategy': 'test_parallel.py',
    'DDPStrategy': 'test_parallel.py',
    'FSDPStrategy': 'test_parallel.py',
    'MMDistributedDataParallel': 'test_parallel.py',
    'MMFullyShardedDataParallel': 'test_parallel.py',
}
NOT_TRIED = {
    'MMSeparateDistributedDataParallel': 'for networks of several optimizers; names in its checkpoints have .module.',
    'MMDeepSpeedEngineWrapper': 'needs DeepSpeed and a GPU',
    'DeepSpeedStrategy': 'needs DeepSpeed and a GPU',
    'ColossalAIModelWrapper': 'needs ColossalAI and a GPU',
    'CollosalAIModelWrapper': 'needs ColossalAI and a GPU',
    'ColossalAIStrategy': 'needs ColossalAI and a GPU',
    'DataParallel': 'of PyTorch; no runner builds it',
    'DistributedDataParallel': 'of PyTorch; no runner builds it',
}


def _run(cfg, work_dir, **changes):
    DefaultScope._instance_dict.clear()
    cfg = cfg.copy()
    cfg.merge_from_dict({'work_dir': str(work_dir), 'experiment_name': f'part{next(_number)}', **changes})
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.fixture
def cfg(tmp_path):
    baseline = save_tiny_baseline(tmp_path / 'baseline.pth')
    cfg = tiny_config(tmp_path / 'work', baseline, **{'train_cfg.max_epochs': 2, 'log_level': 'ERROR'})
    cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    return cfg


@pytest.mark.parametrize('part', [*DATA, *BY_ITERATION])
def test_training_data_of_every_kind_are_drawn_and_resumed_exactly(cfg, tmp_path, part):
    if part in BY_ITERATION:
        cfg.train_cfg = dict(by_epoch=False, max_iters=4, val_interval=2)
        cfg.default_hooks.checkpoint.update(by_epoch=False, interval=2)
    cfg.train_dataloader = {**DATA, **BY_ITERATION}[part] or cfg.train_dataloader
    middle, end = ('iter_2.pth', 'iter_4.pth') if part in BY_ITERATION else ('epoch_1.pth', 'epoch_2.pth')
    whole = _run(cfg, tmp_path / 'whole')
    assert read_checkpoint(tmp_path / 'whole' / end)['meta']['deform_upgrade']['before_training']
    _run(cfg, tmp_path / 'resumed', resume=True, load_from=str(tmp_path / 'whole' / middle))
    assert not same(tmp_path / 'whole' / middle, tmp_path / 'whole' / end) and whole.iter >= 4
    if part not in INEXACT:
        assert same(tmp_path / 'whole' / end, tmp_path / 'resumed' / end)


def test_a_validation_loop_that_returns_nothing_is_scored(tmp_path):
    """Of a teacher and a student, in which both networks are upgraded."""
    torch.manual_seed(1)
    plain = dict(type='TinyModel', backbone=dict(type='TinyBackbone'))
    network = MODELS.build(dict(type='TinySemi', detector=plain))
    torch.save({'state_dict': network.state_dict()}, tmp_path / 'baseline.pth')
    cfg = tiny_config(tmp_path / 'work', tmp_path / 'baseline.pth', **{'train_cfg.max_epochs': 1})
    cfg.model = dict(type='TinySemi', detector=cfg.model)
    cfg.val_cfg = dict(type='mmdet.TeacherStudentValLoop')
    cfg.default_hooks.checkpoint.save_best = 'teacher/tiny/error'
    scores = {}
    for name, hooks in (('without', []), ('with', [dict(type='mmdet.MeanTeacherHook')])):  # which begins with a copy
        _run(cfg, tmp_path / name, custom_hooks=[*cfg.custom_hooks, *hooks])
        provenance = read_checkpoint(tmp_path / name / 'epoch_1.pth')['meta']['deform_upgrade']
        assert list(provenance['layers']) == ['teacher.backbone.second', 'student.backbone.second']
        scores[name] = provenance['before_training']
    assert scores['with'] == scores['without'] and scores['with'].keys() == {'teacher/tiny/error', 'student/tiny/error'}
    assert len(set(scores['with'].values())) == 2
    upgraded = read_checkpoint(tmp_path / 'without' / 'epoch_1.pth')['state_dict']
    assert validate(cfg, upgraded, 'reverting').keys() == scores['with'].keys()
    cfg.model.update(type='TrainOffsets', base_type='TinySemi')
    _run(cfg, tmp_path / 'offsets', custom_hooks=[*cfg.custom_hooks, dict(type='mmdet.MeanTeacherHook')])
    trained, start = read_checkpoint(tmp_path / 'offsets' / 'epoch_1.pth')['state_dict'], network.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in start.items()), 'also of the teacher'
    assert all(trained[f'{part}.backbone.second.conv_offset.weight'].any() for part in ('teacher', 'student'))


def test_every_part_of_the_frameworks_is_tried_or_has_its_reason():
    for name in ('mmdet.engine', 'mmdet.datasets', 'mmseg.engine', 'mmseg.datasets', 'mmengine._strategy'):
        import_module(name)
    families = (LOOPS, DATA_SAMPLERS, MODEL_WRAPPERS, RUNNERS, STRATEGIES)
    parts = [
        part for root in families for family in (root, *root.children.values()) for part in family.module_dict.items()
    ]
    names = {name for name, kind in parts if kind.__module__.partition('.')[0] in ('mmengine', 'mmdet', 'mmseg')}
    names |= {
        name
        for family in (DATASETS, *DATASETS.children.values())
        for name, kind in family.module_dict.items()
        if {'dataset', 'datasets'} & signature(kind).parameters.keys()
    }
    tried = {part.rpartition('.')[2] for part in (*DATA, *BY_ITERATION)} | {*ELSEWHERE, *NOT_TRIED}
    assert names - tried == set(), 'new in a framework'
    assert tried - names <= {*NOT_TRIED}, 'gone from the frameworks'
