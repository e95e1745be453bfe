"""What is drawn by accident, and what no call has any business with."""

import contextlib
import os
import random

import numpy as np
import torch
from hypothesis import strategies as st
from mmdet.utils import register_all_modules
from mmengine.registry import HOOKS, MODELS, TRANSFORMS, DefaultScope
from mmengine.runner import CheckpointLoader

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
