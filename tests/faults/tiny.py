"""A network, data and a metric that train in a fraction of a second, for MMEngine's real runner.

Two convolutions regress a picture's mean; data are numbers that depend on their index alone. As a config's
``custom_imports`` it also serves tools/train.py, in which several processes may run on a CPU-only PyTorch.
"""

import os
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import nn
from torch.utils.data import Dataset

import mmdeform_upgrade  # noqa: F401

torch.cuda.set_device = lambda device: None  # MMEngine's launcher sets one whatever the backend is


@MODELS.register_module(force=True)
class TinyBackbone(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


@MODELS.register_module(force=True)
class TinyModel(BaseModel):
    """``sign=-1`` trains towards the wrong answer."""

    def __init__(self, backbone, sign=1.0, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.backbone, self.sign = MODELS.build(backbone), sign

    def forward(self, picture, truth, mode='tensor'):
        found = self.backbone(picture).mean((1, 2, 3))
        if mode == 'loss':
            return {'loss': (found - self.sign * truth).square().mean()}
        return [dict(error=float((one - other).square())) for one, other in zip(found, truth, strict=True)]


@DATASETS.register_module(force=True)
class TinyData(Dataset):
    def __init__(self, length=8):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        picture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index)) + torch.rand(1) / 100
        return dict(picture=picture, truth=2 * picture.mean() + 1)


@METRICS.register_module(force=True)
class TinyError(BaseMetric):
    default_prefix = 'tiny'

    def process(self, data_batch, data_samples):
        self.results += [sample['error'] for sample in data_samples]

    def compute_metrics(self, results):
        return {'error': sum(results) / len(results)}


@HOOKS.register_module(force=True)
class SignRank(Hook):
    """Writes the process's id to the work directory in the third epoch."""

    def before_train_epoch(self, runner):
        if runner.epoch == 2:
            (Path(runner.work_dir) / f'rank_{runner.rank}').write_text(str(os.getpid()))


def tiny_config(work_dir, baseline=None, **changes):
    """Six epochs of four steps with momentum, validated after each; an upgrade where ``baseline`` is given."""
    backbone, extra = dict(type='TinyBackbone'), {}
    if baseline is not None:
        backbone = dict(type='DeformUpgrade', base_type='TinyBackbone', targets='last:1')
        extra = dict(load_from=str(baseline), custom_hooks=[dict(type='DeformUpgradeHook'), dict(type='RunGuardHook')])
    loader = dict(batch_size=2, num_workers=0, dataset=dict(type='TinyData'), collate_fn=dict(type='default_collate'))
    cfg = Config(
        dict(
            model=dict(type='TinyModel', backbone=backbone),
            work_dir=str(work_dir),
            log_level='INFO',
            randomness=dict(seed=0),
            train_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=True)),
            val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
            train_cfg=dict(by_epoch=True, max_epochs=6, val_interval=1),
            val_cfg=dict(),
            val_evaluator=dict(type='TinyError'),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.005, momentum=0.9)),
            param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6)],
            default_hooks=dict(
                checkpoint=dict(
                    type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='tiny/error', rule='less'
                ),
                logger=dict(type='LoggerHook', interval=1),
            ),
            custom_imports=dict(imports=['tests.faults.tiny'], allow_failed_imports=False),
            **extra,
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


def save_tiny_baseline(path, steps=15, channels=4):
    """A network that has learned something; after 60 steps, all that there is to learn."""
    torch.manual_seed(1)
    network = MODELS.build(dict(type='TinyModel', backbone=dict(type='TinyBackbone', channels=channels)))
    batch = [TinyData()[index] for index in range(8)]
    data = {key: torch.stack([sample[key] for sample in batch]) for key in ('picture', 'truth')}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        network(**data, mode='loss')['loss'].backward()
        optimizer.step()
    torch.save({'meta': {}, 'state_dict': network.state_dict()}, path)
    return path
