"""Calls with arguments as people and accidents make them, and what has to hold whatever comes of them.

Each check draws its arguments, makes one call, and accepts either a result that is what the call promises, or an
``UpgradeError``. Model, config, files and the state of the process have to be as before in the second case.
``tests/test_wrong_input.py`` runs some examples of each, ``sweep_wrong_input.py`` thousands.
"""

import contextlib
import copy
import io
import os
import pickle
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, TRANSFORMS, DefaultScope
from mmengine.runner import CheckpointLoader
from torch import nn

from mmdeform_upgrade import (
    UpgradeError,
    ZeroOffsetDCN,
    deform_conv2d,
    find_targets,
    load_baseline,
    revert_,
    shorten_schedule,
    upgrade_,
    upgrade_config,
)
from mmdeform_upgrade.files import write_safetensors

register_all_modules(init_default_scope=False)  # what is built registers the rest of its package

NAN, INF = float('nan'), float('inf')
# What a variable holds by accident.
JUNK = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        2,
        3,
        7,
        99,
        2**70,
        0.25,
        1.5,
        -0.5,
        NAN,
        INF,
        '',
        'x',
        b'x',
        (),
        [],
        [None],
        ['a', 3],
        {},
        {'a': None},
        {1: 1},
        object(),
        int,
        torch.ones(2),
        np.float32(0.5),
    ]
)


def process_state():
    """Everything of the process that a call has no business with."""
    return (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),
        random.getstate(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
        os.getcwd(),
        dict(os.environ),
        *(sorted(registry._module_dict) for registry in (MODELS, HOOKS, TRANSFORMS)),
        list(CheckpointLoader._schemes),
        list(DefaultScope._instance_dict),
    )


def fingerprint(model):
    """Classes, settings, parameters and training flags of a model, by identity and by value."""
    modules = [(name, id(m), type(m), m.training, m.extra_repr()) for name, m in model.named_modules()]
    tensors = [
        (name, id(p), p.requires_grad, p.detach().clone().flatten().tolist())
        for name, p in (*model.named_parameters(), *model.named_buffers())
    ]
    return modules, tensors


@contextlib.contextmanager
def nothing_else_changes():
    before = process_state()
    yield
    assert process_state() == before


class Block(nn.Module):
    def __init__(self, channels, frozen=False):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2.requires_grad_(not frozen)

    def forward(self, x):
        return x + self.conv2(self.conv1(x)).relu()


class Network(nn.Module):
    """A ResNet's names, some of its convolutions frozen, tied, or of a kind that cannot be upgraded."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, (1, 3), padding=(0, 1), padding_mode='reflect')
        self.layer1 = nn.Sequential(Block(4, frozen=True))
        self.layer4 = nn.Sequential(Block(4), Block(4))
        self.weird = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
        self.last = self.layer4[1].conv2

    def forward(self, x):
        return self.last(self.weird(self.layer4(self.layer1(self.conv1(x)))))


ENTRY = st.one_of(
    st.sampled_from(
        [
            'layer4.0.conv2',
            '0.conv2',
            'conv2',
            'conv1',
            'layer4',
            'last',
            'weird',
            'layer1.0.conv2',
            'res5',
            'res5a',
            'res5a,b',
            'res5c',
            'res4b20-22',
            'in:layer4',
            'in:nothing',
            'in:',
            'layer4.9.conv2',
            'backbone.layer4.0.conv2',
            r'layer4\..*',
            '.*',
            '(',
            '*',
            '[a',
            '',
            ' ',
            'last:',
            '\x00',
            'é',
        ]
    ),
    st.integers(-3, 200).map(lambda number: f'last:{number}'),
    st.text('layer41.conv2:*+', max_size=8),
)
TARGETS = st.one_of(
    ENTRY,
    st.lists(ENTRY, max_size=3),
    st.lists(ENTRY, max_size=2).map(tuple),
    st.dictionaries(ENTRY, st.one_of(st.integers(-1, 5), JUNK), max_size=2),
    JUNK,
)
GROUPS = st.one_of(st.integers(-1, 5), JUNK)


def check_find_targets(data):
    model, targets, exclude = Network(), data.draw(TARGETS), data.draw(st.one_of(st.just(()), TARGETS))
    before = fingerprint(model)
    with nothing_else_changes(), contextlib.suppress(UpgradeError):
        names = find_targets(model, targets, exclude)
        assert names and len(set(names)) == len(names)
        assert all(type(model.get_submodule(name)) is nn.Conv2d for name in names)
    assert fingerprint(model) == before


def check_upgrade(data):
    model = Network()
    arguments = dict(
        exclude=data.draw(st.one_of(st.just(()), TARGETS)),
        deform_groups=data.draw(GROUPS),
    )
    targets, picture = data.draw(TARGETS), torch.randn(1, 3, 5, 6)
    before, output = fingerprint(model), model(picture)
    try:
        with nothing_else_changes():
            report = upgrade_(model, targets, **arguments)
    except UpgradeError:
        assert fingerprint(model) == before
        return
    assert report.names and all(isinstance(model.get_submodule(name), ZeroOffsetDCN) for name in report.names)
    assert torch.allclose(model(picture), output, atol=1e-5)
    assert str(report)
    revert_(model)
    assert fingerprint(model)[1] == before[1]


def check_revert(data):
    model = Network()
    if data.draw(st.booleans()):
        upgrade_(model, 'in:layer4')
        if data.draw(st.booleans()):
            model.layer4[0].conv2.conv_offset.bias.data.fill_(1.0)
    drop = data.draw(st.one_of(JUNK, st.lists(st.one_of(ENTRY, JUNK), max_size=2), st.just(['layer4.0.conv2'])))
    before = fingerprint(model)
    try:
        with nothing_else_changes():
            names = revert_(model, drop=drop)
    except UpgradeError:
        assert fingerprint(model) == before
        return
    assert all(type(model.get_submodule(name)) is nn.Conv2d for name in names)


SIZE = st.one_of(st.integers(0, 4), st.tuples(st.integers(0, 3), st.integers(0, 3)), JUNK)


def check_layer(data):
    arguments = dict(
        in_channels=data.draw(st.one_of(st.integers(0, 6), JUNK)),
        out_channels=data.draw(st.one_of(st.integers(0, 6), JUNK)),
        kernel_size=data.draw(SIZE),
    )
    for name, values in (
        ('stride', SIZE),
        ('padding', st.one_of(SIZE, st.sampled_from(['same', 'valid', 'Same']))),
        ('dilation', SIZE),
        ('groups', st.one_of(st.integers(0, 3), JUNK)),
        ('padding_mode', st.sampled_from(['zeros', 'reflect', 'circular', 'replicate', 'x', None])),
        ('deform_groups', GROUPS),
    ):
        if data.draw(st.integers(0, 2)) == 0:
            arguments[name] = data.draw(values)
    try:
        plain = nn.Conv2d(**{name: value for name, value in arguments.items() if name != 'deform_groups'})
    except Exception as error:  # PyTorch's error is that of the layer as well
        with pytest.raises((UpgradeError, type(error))):
            ZeroOffsetDCN(**arguments)
        return
    try:
        random_numbers = torch.get_rng_state()
        layer = ZeroOffsetDCN(**arguments)
    except UpgradeError:
        assert torch.equal(torch.get_rng_state(), random_numbers)
        return
    picture = torch.randn(2, layer.in_channels, *data.draw(st.tuples(st.integers(0, 6), st.integers(0, 6))))
    plain.weight, plain.bias = layer.weight, layer.bias
    try:
        expected = plain(picture)
    except (RuntimeError, TypeError):  # of PyTorch: such a setting or size has no output
        return
    with contextlib.suppress(UpgradeError):
        found = layer(picture)
        assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)


SHAPE = st.lists(st.integers(0, 5), min_size=0, max_size=5).map(tuple)
DTYPE = st.sampled_from(
    [torch.float32] * 5 + [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
)


def check_operator(data):
    n, c, height, width, o, groups = (
        data.draw(st.integers(low, high)) for low, high in ((0, 2), (1, 4), (1, 5), (1, 5), (1, 3), (1, 2))
    )
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    options = {
        name: data.draw(st.one_of(st.integers(1, 2), SIZE))
        for name in ('stride', 'padding', 'dilation')
        if data.draw(st.integers(0, 3)) == 0
    }
    taps = kernel[0] * kernel[1]
    shapes = dict(
        input=(n, c, height, width),
        offset=(n, 2 * taps, height - kernel[0] + 1, width - kernel[1] + 1),
        weight=(o, max(1, c // groups), *kernel),
        bias=(o,),
        mask=(n, taps, height - kernel[0] + 1, width - kernel[1] + 1),
    )
    tensors = {}
    for name, shape in shapes.items():
        odd = data.draw(st.integers(0, 9))
        if odd == 0:
            tensors[name] = data.draw(JUNK)
            continue
        shape = data.draw(SHAPE) if odd == 1 else tuple(max(0, size) for size in shape)
        dtype = data.draw(DTYPE) if odd == 2 else torch.float32
        tensors[name] = torch.ones(shape, dtype=dtype, requires_grad=dtype.is_floating_point and odd == 3)
    if data.draw(st.booleans()):
        tensors.pop('mask'), tensors.pop('bias')
    backend = data.draw(st.sampled_from(['eager', 'auto', 'reference'] * 2 + ['triton', 'cuda', 3]))
    with nothing_else_changes(), contextlib.suppress(UpgradeError):
        output = deform_conv2d(**tensors, **options, backend=backend)
        assert output.shape[:2] == (n, o) or tensors['input'].shape[0] == output.shape[0]
        assert output.isfinite().all()


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


def good_files(model):
    """Bytes of a checkpoint that fits ``model``, in each container."""
    state = model.state_dict()
    for options in ({}, {'_use_new_zipfile_serialization': False}):
        buffer = io.BytesIO()
        torch.save({'state_dict': state, 'meta': {'epoch': np.int64(3)}}, buffer, **options)
        yield buffer.getvalue()
    yield pickle.dumps({'model': {name: value.numpy() for name, value in state.items()}, '__author__': 'x'}, 2)
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors(f'{folder}/a', state)
        yield Path(f'{folder}/a').read_bytes()


STATE = st.dictionaries(
    st.sampled_from(['conv.weight', 'conv.bias', 'module.conv.weight', 'x', '', 3, None]),
    st.one_of(JUNK, SHAPE.map(torch.zeros)),
    max_size=3,
)
SMALL = nn.Sequential()
SMALL.add_module('conv', nn.Conv2d(2, 2, 3))
FILES = tuple(good_files(SMALL))


@st.composite
def files(draw):
    """Bytes of a file that was damaged, or that holds something else."""
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(st.binary(max_size=200))
    if kind == 1:
        buffer, value = (
            io.BytesIO(),
            draw(
                st.one_of(
                    JUNK,
                    STATE,
                    STATE.map(lambda state: {'state_dict': state}),
                    STATE.map(lambda state: {'state_dict': state, 'meta': 3}),
                )
            ),
        )
        try:
            torch.save(value, buffer)
        except Exception:  # of an object that cannot be pickled
            return b''
        return buffer.getvalue()
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data) - 1))
        if kind == 2:
            data[at] = draw(st.integers(0, 255))
        elif len(data) > 300:
            del data[at : at + draw(st.sampled_from([1, 8, 100]))]
    return bytes(data)


def check_load_baseline(data):
    content = data.draw(files())
    model = copy.deepcopy(SMALL) if data.draw(st.booleans()) else None
    if model is not None and data.draw(st.booleans()):
        upgrade_(model, 'last:1')
    before = fingerprint(model) if model is not None else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'a.pth'
        path.write_bytes(content)
        with nothing_else_changes(), contextlib.suppress(UpgradeError):
            state = load_baseline(data.draw(st.sampled_from([path, str(path)])), model)
            assert state and all(
                isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
            )
            if model is not None:
                assert all(state[name].shape == value.shape for name, value in SMALL.state_dict().items())
        assert [p.name for p in Path(folder).iterdir()] == ['a.pth'] and path.read_bytes() == content
    assert model is None or fingerprint(model) == before


CHECKS = dict(
    find_targets=check_find_targets,
    upgrade_=check_upgrade,
    revert_=check_revert,
    ZeroOffsetDCN=check_layer,
    deform_conv2d=check_operator,
    shorten_schedule=check_schedule,
    upgrade_config=check_config,
    DeformUpgrade=check_builder,
    load_baseline=check_load_baseline,
)
