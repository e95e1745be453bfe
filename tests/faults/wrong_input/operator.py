"""Wrong calls of the layer and of the operator."""

import contextlib

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from mmdeform_upgrade import (
    UpgradeError,
    ZeroOffsetDCN,
    deform_conv2d,
)

from .common import JUNK, nothing_else_changes
from .models import GROUPS

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
