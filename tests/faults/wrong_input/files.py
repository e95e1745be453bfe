"""Damaged and foreign files, read as baselines."""

import contextlib
import copy
import io
import pickle
import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from mmdeform_upgrade import (
    UpgradeError,
    load_baseline,
    upgrade_,
)
from mmdeform_upgrade.files import write_safetensors

from .common import JUNK, fingerprint, nothing_else_changes
from .operator import SHAPE


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
