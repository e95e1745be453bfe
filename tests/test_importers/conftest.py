"""Networks of stock configs, built once a session (no test changes one), and a tiny network in foreign names."""

import functools

import pytest
import torch
from mmengine.config import Config

from ..conftest import MMDET_CONFIGS, build
from . import foreign

CLASSES = 6


@pytest.fixture(scope='session')
def stock():
    """``stock('retinanet/retinanet_r50_fpn_1x_coco.py', {'backbone.style': 'caffe'})``: a network, with settings."""

    @functools.lru_cache(maxsize=3)
    def make(path, settings):
        cfg = Config.fromfile(MMDET_CONFIGS / path)
        cfg.merge_from_dict({f'model.{key}': value for key, value in settings})
        cfg.model.backbone.init_cfg = None
        return build(cfg).eval()

    return lambda path, settings=None: make(path, _Settings(settings or {}))


class _Settings(tuple):
    """Settings that can be cached by, whatever their values."""

    def __new__(cls, settings):
        return super().__new__(cls, settings.items())

    def __hash__(self):
        return hash(repr(tuple(self)))


@pytest.fixture(scope='session')
def tiny_retinanet(tiny_config, tmp_path_factory):
    """A config of a tiny RetinaNet with torchvision's settings, on the tiny data set."""
    cfg = Config.fromfile(tiny_config)
    cfg.model = dict(
        type='RetinaNet',
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
            pad_size_divisor=32,
        ),
        backbone=dict(type='ResNet', depth=18, base_channels=8, norm_cfg=dict(type='BN'), norm_eval=True),
        neck=dict(
            type='FPN',
            in_channels=[8, 16, 32, 64],
            out_channels=16,
            start_level=1,
            num_outs=5,
            add_extra_convs='on_output',
            relu_before_extra_convs=True,
        ),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=CLASSES,
            in_channels=16,
            stacked_convs=4,
            feat_channels=16,
            anchor_generator=dict(
                type='AnchorGenerator',
                octave_base_scale=4,
                scales_per_octave=3,
                ratios=[0.5, 1.0, 2.0],
                strides=[8, 16, 32, 64, 128],
            ),
            loss_bbox=dict(type='L1Loss'),
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
        ),
        test_cfg=dict(
            nms_pre=100, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10
        ),
    )
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    path = tmp_path_factory.mktemp('retinanet') / 'retinanet.py'
    cfg.dump(path)
    return path


@pytest.fixture(scope='session')
def trained(tiny_retinanet):
    """Its weights, as if trained."""
    torch.manual_seed(0)
    model = build(Config.fromfile(tiny_retinanet))
    return foreign.random_of({name: tuple(value.shape) for name, value in model.state_dict().items()})


def _torchvision_name(name):
    parts = name.split('.')
    level = int(parts[2]) if parts[0] == 'neck' else 0
    if parts[0] == 'backbone':
        return name.replace('backbone.', 'backbone.body.')
    if parts[1] == 'lateral_convs':
        return f'backbone.fpn.inner_blocks.{level}.0.{parts[-1]}'
    if parts[1] == 'fpn_convs':
        return (
            'backbone.fpn.'
            + (f'layer_blocks.{level}.0' if level < 3 else f'extra_blocks.p{level + 3}')
            + f'.{parts[-1]}'
        )
    head = 'classification' if 'cls' in parts[1] else 'regression'
    if parts[1].endswith('convs'):
        return f'head.{head}_head.conv.{parts[2]}.0.{parts[-1]}'
    return f'head.{head}_head.{"cls_logits" if "cls" in parts[1] else "bbox_reg"}.{parts[-1]}'


@pytest.fixture(scope='session')
def torchvision_state(trained):
    """The same weights as torchvision would have saved them, with its background class."""
    state = {_torchvision_name(name): value for name, value in trained.items() if 'num_batches' not in name}
    for part in ('weight', 'bias'):
        name = f'head.classification_head.cls_logits.{part}'
        rows = state[name].view(9, CLASSES, *state[name].shape[1:])
        state[name] = torch.cat([torch.full_like(rows[:, :1], 9.0), rows], 1).flatten(0, 1)
    return state


@pytest.fixture(scope='session')
def torchvision_file(torchvision_state, tmp_path_factory):
    # Its name says nothing: files are recognised by content.
    path = tmp_path_factory.mktemp('file') / 'weights.bin'
    torch.save({'model': torchvision_state, 'epoch': 26}, path)
    return path
