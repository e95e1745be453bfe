"""PyTorch's own exchange formats."""

import io

import pytest
import torch
from torch import nn

from mmdeform_upgrade import ZeroOffsetDCN

from ..conftest import relative_error


@pytest.fixture
def network():
    layers = (
        ZeroOffsetDCN(3, 6, 3, padding=1, stride=2),
        nn.ReLU(),
        ZeroOffsetDCN(6, 4, (1, 3), groups=2, deform_groups=3),
    )
    for layer in (layers[0], layers[2]):
        nn.init.normal_(layer.conv_offset.bias, std=1.5)
        nn.init.normal_(layer.conv_offset.weight, std=0.2)
    return nn.Sequential(*layers).eval()


def saved_and_loaded(save, load, program):
    file = io.BytesIO()
    save(program, file)
    file.seek(0)
    return load(file)


@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.skipif(not hasattr(torch.export, 'save'), reason='torch too old')
def test_torch_export_keeps_the_operator_and_computes_the_same(network, dynamic):
    batch = {0: torch.export.Dim('N', max=64)} if dynamic else None
    with torch.no_grad():
        program = torch.export.export(network, (torch.randn(2, 3, 12, 15),), dynamic_shapes=(batch,))
    program = saved_and_loaded(torch.export.save, torch.export.load, program)
    operators = [str(node.target) for node in program.graph.nodes]
    assert sum('mmdeform_upgrade.deform_conv2d' in name for name in operators) == 2
    input = torch.randn(5 if dynamic else 2, 3, 12, 15)
    with torch.no_grad():
        assert relative_error(program.module()(input), network(input)) < 1e-5


@pytest.mark.filterwarnings('ignore')
def test_a_trace_needs_no_plugin_and_keeps_its_input_size(network):
    with torch.no_grad():
        traced = torch.jit.trace(network, torch.randn(2, 3, 12, 15))
    assert 'mmdeform_upgrade::' not in str(traced.inlined_graph)
    traced = saved_and_loaded(torch.jit.save, torch.jit.load, traced)
    input = torch.randn(2, 3, 12, 15)
    assert relative_error(traced(input), network(input)) < 1e-5
