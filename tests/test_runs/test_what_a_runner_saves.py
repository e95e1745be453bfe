"""Whatever MMEngine's Runner saves is read back, and a run resumed from it ends as the uninterrupted one does."""

import argparse
import collections
import copy
import datetime
import itertools
import pathlib
import re

import mmdet.registry
import mmseg.engine  # registers its scheduler
import mmseg.registry
import numpy as np
import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, OPTIMIZERS, PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import CheckpointLoader, Runner

from mmdeform_upgrade.mm.loading import read_checkpoints_safely
from mmdeform_upgrade.readers import Inert, read_checkpoint
from mmdeform_upgrade.release import inspect_checkpoint, publish

register_all_modules(init_default_scope=False)
SETTINGS = {
    'Constant': dict(factor=0.5, end=3),
    'CosineAnnealing': dict(T_max=4),
    'CosineRestart': dict(periods=[2, 2], restart_weights=[1, 0.5], eta_min=0.001),
    'Exponential': dict(gamma=0.9),
    'Linear': dict(start_factor=0.1, end=3),
    'MultiStep': dict(milestones=[1, 3, 3]),
    'OneCycle': dict(eta_max=0.1, total_steps=4),
    'Poly': dict(eta_min=0.001, power=0.9, end=4),
    'QuadraticWarmup': dict(end=3),
    'ReduceOnPlateau': dict(monitor='score', rule='greater', patience=0),
    'Step': dict(step_size=1),
}
SCHEDULERS = [
    *PARAM_SCHEDULERS.module_dict,
    *(f'mmdet.{name}' for name in mmdet.registry.PARAM_SCHEDULERS.module_dict),
    *(f'mmseg.{name}' for name in mmseg.registry.PARAM_SCHEDULERS.module_dict),
]
NOT_RUN = {
    'Optimizer': 'the base of all',
    'LBFGS': 'needs a closure, which no OptimWrapper gives',
    'SparseAdam': 'needs sparse gradients',
    'ZeroRedundancyOptimizer': 'needs a process group',
}
METAINFO = {
    'classes': ('a', 'b'),
    'palette': [(0, 0, 0), [1, 2, 3]],
    'nested': {'tree': {'leaf': ({'x': 1},), 'config': ConfigDict(a=dict(b=[1]))}, 'none': None, 3: 'three'},
    'array': np.arange(6, dtype=np.float32).reshape(2, 3),
    'number': np.float64(0.5),
    'texts': np.array(['a', 'bc']),
    'tensor': torch.arange(3),
    'kinds': collections.defaultdict(list, a=[1]),
    'ordered': collections.OrderedDict(b=1, a=2),
    'queue': collections.deque([1, 2], 3),
    'set': {1, 2},
    'range': range(3),
    'folder': pathlib.PurePosixPath('/data'),
    'date': datetime.date(2026, 1, 2),
    'dtype': torch.float32,
    'complex': 1j,
    'mixed': {1, 'a'},
}
UNKNOWN = {'namespace': argparse.Namespace(a=1), 'function': len, 'class': BaseDataset}
_number = itertools.count()


@DATASETS.register_module()
class Points(BaseDataset):
    METAINFO = METAINFO

    def load_data_list(self):
        return [{'x': torch.full((3,), float(number))} for number in range(4)]


@METRICS.register_module()
class Score(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [0.5] * len(data_samples)

    def compute_metrics(self, results):
        return {'score': np.mean(results)}


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2, bias=False)
        torch.nn.init.ones_(self.layer.weight)

    def forward(self, x, mode='tensor', **more):
        y = self.layer(torch.stack(list(x)))
        return {'loss': y.square().mean()} if mode == 'loss' else list(y)


def run(folder, epochs=2, resume=None, **changes):
    """Train the line; ``resume`` goes through the package's reader, as in every run with the hook."""
    DefaultScope._instance_dict.clear()
    loader = dict(
        batch_size=2, dataset=dict(type='Points'), sampler=dict(type='DefaultSampler', shuffle=False), num_workers=0
    )
    runner = Runner(
        Line(),
        str(folder),
        train_dataloader=loader,
        val_dataloader=copy.deepcopy(loader),
        val_cfg=dict(),
        val_evaluator=dict(type='Score'),
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, save_best='score', rule='greater')),
        load_from=resume and str(resume),
        resume=resume is not None,
        experiment_name=f'line{next(_number)}',
        log_level='ERROR',
        **changes,
    )
    runner.train()
    return runner


@pytest.fixture(autouse=True)
def _safe(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())
    read_checkpoints_safely()


def same(loaded, saved, where=''):
    """Every known value as it was saved; whatever is inert is named."""
    if isinstance(loaded, Inert):
        return [where]
    if isinstance(saved, HistoryBuffer):
        assert type(loaded) is HistoryBuffer and loaded.statistics('mean') == saved.statistics('mean')
        return same(loaded.data, saved.data, where)
    assert type(loaded) is type(saved) or isinstance(saved, (ConfigDict, pathlib.PurePath)), where
    if isinstance(saved, (torch.Tensor, np.ndarray)):
        assert np.array_equal(np.asarray(loaded), np.asarray(saved)), where
        return []
    if isinstance(saved, dict):
        assert list(loaded) == list(saved), where
        return [name for key in saved for name in same(loaded[key], saved[key], f'{where}.{key}')]
    if isinstance(saved, (list, tuple)):
        assert len(loaded) == len(saved), where
        return [name for pair in zip(loaded, saved, strict=True) for name in same(*pair, where)]
    assert loaded == saved or (loaded != loaded and saved != saved), where
    return []


def goes_on(tmp_path, **changes):
    """The names of what came back inert, after the run was resumed and ended in the same bits."""
    whole = run(tmp_path / 'whole', **changes)
    middle = tmp_path / 'whole' / 'epoch_1.pth'
    inert = same(read_checkpoint(middle), torch.load(middle, weights_only=False))
    resumed = run(tmp_path / 'resumed', resume=middle, **changes)
    assert torch.equal(whole.model.layer.weight, resumed.model.layer.weight)
    assert whole.optim_wrapper.get_lr() == resumed.optim_wrapper.get_lr()
    return inert


@pytest.mark.parametrize('suffix', ['LR', 'Momentum', 'ParamScheduler', 'LRRatio'])
def test_every_scheduler_is_read_and_goes_on(tmp_path, suffix):
    """All that MMEngine, mmdet and mmseg register, in one run of each kind."""
    stems = {name: re.fullmatch(rf'(?:\w+\.)?(\w+){suffix}', name) for name in SCHEDULERS}
    more = {'param_name': 'lr'} if suffix == 'ParamScheduler' else {}
    chosen = [dict(type=name, **SETTINGS[stem[1]], **more) for name, stem in stems.items() if stem]
    assert chosen and all(
        any(name.endswith(end) for end in ('LR', 'Momentum', 'ParamScheduler', 'LRRatio')) for name in stems
    )
    inert = goes_on(tmp_path, param_scheduler=chosen)
    assert set(inert) == ({'.param_schedulers.anneal_func'} if suffix in ('LR', 'ParamScheduler') else set())


@pytest.mark.parametrize('name', sorted(set(OPTIMIZERS.module_dict) - set(NOT_RUN)))
def test_every_optimizer_is_read_and_goes_on(tmp_path, name):
    lines = [Line(), Line()]
    wrappers = [build_optim_wrapper(line, dict(optimizer=dict(type=name, lr=0.01))) for line in lines]
    lines[0].train_step({'x': [torch.ones(3)]}, wrappers[0])
    state = {'state_dict': lines[0].state_dict(), 'optimizer': wrappers[0].state_dict()}
    torch.save(state, tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')
    assert same(read, state) == []
    lines[1].load_state_dict(read['state_dict'])
    wrappers[1].load_state_dict(read['optimizer'])
    for line, wrapper in zip(lines, wrappers, strict=True):
        line.train_step({'x': [torch.ones(3)]}, wrapper)
    assert torch.equal(lines[0].layer.weight, lines[1].layer.weight)


def test_the_state_of_hooks_and_the_messages_are_read_and_go_on(tmp_path):
    hooks = [
        dict(type='EMAHook', momentum=0.1),
        dict(type='EarlyStoppingHook', monitor='score', rule='greater', patience=9),
        dict(type='RunGuardHook'),
    ]
    assert goes_on(tmp_path, custom_hooks=hooks) == []
    saved = read_checkpoint(tmp_path / 'resumed' / 'epoch_2.pth')
    assert saved['ema_state_dict'] and saved['message_hub']['runtime_info']['best_score'] == 0.5


def test_every_type_of_metainfo_is_read_resumed_inspected_and_published(tmp_path):
    assert goes_on(tmp_path) == []
    path = tmp_path / 'whole' / 'epoch_2.pth'
    assert 'trained: epoch 2' in str(inspect_checkpoint(path))
    written = publish(str(path), str(tmp_path / 'zoo'))
    published = torch.load(written[0], weights_only=True)['meta']['dataset_meta']
    assert published['classes'] == ('a', 'b') and published['nested']['tree']['config'] == {'a': {'b': [1]}}
    assert set(published) == set(METAINFO) - {'dtype', 'complex'}


def test_what_nobody_knows_is_left_behind_when_a_run_is_resumed_or_published(tmp_path, monkeypatch):
    monkeypatch.setattr(Points, 'METAINFO', {**METAINFO, **UNKNOWN})
    places = ('.meta.dataset_meta', '.message_hub.runtime_info.dataset_meta')
    assert set(goes_on(tmp_path)) == {f'{place}.{name}' for place in places for name in UNKNOWN}
    MessageHub.get_current_instance().update_info('callback', len)
    runner = run(tmp_path / 'more')
    runner.message_hub.update_info('callback', len)
    runner.save_checkpoint(str(tmp_path), 'more.pth')
    again = run(tmp_path / 'again', epochs=3, resume=tmp_path / 'more.pth')
    assert again.epoch == 3 and 'callback' not in again.message_hub.runtime_info
    assert publish(str(tmp_path / 'more.pth'), str(tmp_path / 'zoo'))
