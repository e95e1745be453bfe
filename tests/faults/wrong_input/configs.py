"""Wrong configs: their schedule shortened, upgraded, and a component built."""

import contextlib
import copy

import numpy as np
import torch
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import MODELS

from mmdeform_upgrade import (
    UpgradeError,
    ZeroOffsetDCN,
    shorten_schedule,
    upgrade_config,
)

from .common import JUNK, nothing_else_changes, process_state
from .models import GROUPS, TARGETS

SCHEDULER = st.fixed_dictionaries(
    dict(
        type=st.sampled_from(
            ['MultiStepLR', 'StepLR', 'LinearLR', 'CosineAnnealingLR', 'PolyLR', 'ExponentialLR', 'OneCycleLR']
        )
    ),
    optional=dict(
        begin=st.one_of(st.integers(0, 30), JUNK),
        end=st.one_of(st.integers(0, 60), JUNK),
        by_epoch=st.one_of(st.booleans(), JUNK),
        milestones=st.one_of(st.lists(st.integers(0, 40), max_size=3), JUNK),
        T_max=st.one_of(st.integers(0, 60), JUNK),
        step_size=st.one_of(st.integers(0, 30), JUNK),
        gamma=st.one_of(st.floats(0, 1), JUNK),
        convert_to_iter_based=st.booleans(),
    ),
)
HOOK = st.one_of(
    JUNK,
    st.fixed_dictionaries(
        {},
        optional=dict(
            type=st.sampled_from(['CheckpointHook', 'EMAHook', 'PipelineSwitchHook', 'DeformUpgradeHook', 3, None]),
            interval=st.one_of(st.integers(-1, 30), JUNK),
            switch_epoch=st.one_of(st.integers(-1, 30), JUNK),
            by_epoch=st.booleans(),
        ),
    ),
)
PART = st.fixed_dictionaries(
    {},
    optional=dict(
        type=st.one_of(st.sampled_from(['ResNet', 'mmdet.ResNet', 'DeformUpgrade', '']), JUNK),
        depth=st.just(18),
        init_cfg=st.one_of(st.just(dict(type='Pretrained', checkpoint='x.pth')), JUNK),
        base_type=st.just('ResNet'),
    ),
)


@st.composite
def configs(draw):
    """A training config, with up to two of its settings made of junk or taken away."""
    cfg = dict(
        model=dict(
            type='RetinaNet', backbone=draw(PART), neck=dict(type='FPN', in_channels=[8], out_channels=8, num_outs=1)
        ),
        train_cfg=dict(
            type='EpochBasedTrainLoop', max_epochs=draw(st.integers(1, 60)), val_interval=draw(st.integers(1, 60))
        ),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
        param_scheduler=draw(st.one_of(st.lists(SCHEDULER, max_size=2), SCHEDULER)),
        default_hooks=dict(checkpoint=draw(HOOK)),
        custom_hooks=draw(st.lists(HOOK, max_size=2)),
    )
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from(sorted(cfg) or ['model']))
        if key not in cfg:
            break
        within = isinstance(cfg[key], dict) and cfg[key]
        inner = draw(st.one_of(st.none(), st.sampled_from(sorted(cfg[key])))) if within else None
        target, name = (cfg, key) if inner is None else (cfg[key], inner)
        if draw(st.booleans()):
            target[name] = draw(JUNK)
        else:
            del target[name]
    return cfg


def as_config(plain):
    try:
        return Config(copy.deepcopy(plain))
    except Exception:  # MMEngine does not take it either
        return None


# Settings that MMEngine would not take either; a tensor's truth is a RuntimeError.
NONSENSE = (TypeError, AttributeError, KeyError, ValueError, RuntimeError)
RATIO = st.one_of(st.floats(0.01, 1), st.sampled_from([25, 0, -0.25, 1.01, '0.25']), JUNK)


def same(a, b):
    """Equality of plain values in which NaN equals itself and tensors are compared by identity."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (torch.Tensor, np.generic)):
        return type(a) is type(b) and bool((a == b).all())
    return a is b or a == b or (a != a and b != b) or type(a) is type(b) is object


def check_schedule(data):
    cfg, ratio = as_config(data.draw(configs())), data.draw(RATIO)
    if cfg is None:
        return
    before = copy.deepcopy(cfg._cfg_dict.to_dict())
    with nothing_else_changes(), contextlib.suppress(UpgradeError, *NONSENSE):
        short = shorten_schedule(cfg, ratio)
        assert short.train_cfg.max_epochs == max(1, int(cfg.train_cfg.max_epochs * ratio + 0.5))
    assert same(cfg._cfg_dict.to_dict(), before)


def check_config(data):
    cfg = as_config(data.draw(configs()))
    if cfg is None:
        return
    before = copy.deepcopy(cfg._cfg_dict.to_dict())
    arguments = dict(
        load_from=data.draw(st.one_of(st.just('x.pth'), JUNK)),
        targets=data.draw(TARGETS),
        epoch_ratio=data.draw(RATIO),
        exclude=data.draw(st.one_of(st.just(()), TARGETS)),
        part=data.draw(st.one_of(st.sampled_from(['backbone', 'neck', 'head', 'backbone.x', '.']), JUNK)),
        deform_groups=data.draw(GROUPS),
    )
    with nothing_else_changes(), contextlib.suppress(UpgradeError, *NONSENSE):
        upgraded = upgrade_config(cfg, **arguments)
        part = upgraded.model
        for key in arguments['part'].split('.'):
            part = part[key]
        assert part.type == 'DeformUpgrade' and upgraded.load_from == 'x.pth'
        assert upgraded.custom_hooks[-1].type == 'DeformUpgradeHook'
    assert same(cfg._cfg_dict.to_dict(), before)


def check_builder(data):
    settings = dict(
        base_type=data.draw(
            st.one_of(st.sampled_from(['mmdet.ResNet', 'ResNet', 'mmdet.Nothing', '', 'no.such']), JUNK)
        ),
        targets=data.draw(TARGETS),
        exclude=data.draw(st.one_of(st.just(()), TARGETS)),
        deform_groups=data.draw(GROUPS),
    )
    settings = {name: value for name, value in settings.items() if data.draw(st.integers(0, 5))}
    settings.update(depth=18, base_channels=4, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    if data.draw(st.booleans()):
        settings['frozen_stages'] = data.draw(st.integers(-1, 1))
    with nothing_but_random_numbers(), contextlib.suppress(UpgradeError, *NONSENSE):
        module = MODELS.build(dict(type='DeformUpgrade', **settings))
        assert any(isinstance(m, ZeroOffsetDCN) for m in module.modules())


@contextlib.contextmanager
def nothing_but_random_numbers():
    """A network that was built drew its weights."""
    before = process_state()
    yield
    after = process_state()
    assert (*before[:2], *before[5:]) == (*after[:2], *after[5:])
