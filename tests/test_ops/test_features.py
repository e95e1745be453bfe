"""What a training run does with an operator: autocast, compile, checkpointing, tracing, determinism, counting."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mmdeform_upgrade.errors import UpgradeError
from mmdeform_upgrade.layers import ZeroOffsetDCN
from mmdeform_upgrade.ops import deform_conv2d, flops

from .cases import CASES, Case, assert_close, grad_like_output, results

CASE = CASES['groups across deform groups']


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def call(*tensors):
    inputs, offset, weight, bias, mask = tensors
    return deform_conv2d(inputs, offset, weight, bias, mask=mask, **CASE.hyper)


@pytest.mark.parametrize('name', ['mask', 'rectangular', 'groups across deform groups', 'depthwise'])
def test_gradients_are_those_of_finite_differences(name):
    case = CASES[name]
    assert torch.autograd.gradcheck(
        lambda i, o, w, b, m: deform_conv2d(i, o, w, b, mask=m, **case.hyper, backend='eager'),
        case.tensors(),
        fast_mode=True,
    )


@pytest.mark.parametrize('dynamic', [False, True])
def test_compile_needs_no_graph_break(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(deform_conv2d, fullgraph=True, backend='aot_eager', dynamic=dynamic)
    for case in (CASE, Case(size=(5, 9))):
        tensors, grad = case.tensors(), grad_like_output(case)
        tensors[0] = tensors[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        assert_close(results(compiled, case, tensors, grad), results(deform_conv2d, case, tensors, grad), 1e-12)


def test_compile_keeps_autocast():
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend='aot_eager')
    def function(*tensors):
        with torch.autocast('cpu', torch.bfloat16):
            return call(*tensors)

    tensors = CASE.tensors(torch.float32)
    output = function(*tensors)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in tensors)


def test_the_operators_meet_the_rules_of_the_dispatcher():
    """Fake tensors, schema and autograd registration agree with what the operators do."""
    from mmdeform_upgrade.ops.geometry import describe

    inputs, offset, weight, bias, mask = CASE.tensors(torch.float32, requires_grad=False)
    geo = list(describe(inputs, offset, weight, bias, mask, CASE.stride, CASE.padding, CASE.dilation))
    operators, tests = torch.ops.mmdeform_upgrade, ('test_schema', 'test_faketensor')
    arguments = (inputs, offset, weight, bias, mask, geo, 'eager')
    torch.library.opcheck(operators.deform_conv2d, arguments, test_utils=tests)
    output = operators.deform_conv2d(*arguments)
    for wanted in ([True, True, True], [False, True, False], [True, False, True]):
        arguments = (output, inputs, offset, weight, mask, geo, 'eager', wanted)
        torch.library.opcheck(operators.deform_conv2d_backward, arguments, test_utils=tests)


@pytest.mark.parametrize('reentrant', [True, False])
def test_checkpointing_changes_nothing(reentrant):
    tensors, grad = CASE.tensors(), grad_like_output(CASE)
    expected = torch.autograd.grad(call(*tensors), tensors, grad)
    checkpoint(call, *tensors, use_reentrant=reentrant).backward(grad)
    assert all(torch.equal(t.grad, e) for t, e in zip(tensors, expected, strict=True))


def test_autocast_puts_values_in_its_dtype_and_leaves_coordinates():
    inputs = torch.arange(2048.0).view(1, 1, 1, 2048)
    offset = torch.tensor([0.0, 1 / 4096]).view(1, 2, 1, 1).expand(1, 2, 1, 2048).contiguous().requires_grad_()
    weight = torch.ones(1, 1, 1, 1, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        output = deform_conv2d(inputs * 0 + 4096.0, offset, weight)
        output.float().sum().backward()  # in autocast, as some training loops do
    assert output.dtype == torch.bfloat16
    assert offset.grad.dtype == weight.grad.dtype == torch.float32
    assert float(offset.grad[0, 1, 0, -1]) == -4096  # at column 2047 + 1/4096, a place that bfloat16 does not have


def test_the_meta_device_gives_shapes():
    layer = ZeroOffsetDCN(4, 6, 3, padding=1, device='meta')
    x = torch.empty(2, 4, 5, 7, device='meta', requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert (out.shape, x.grad.shape, out.device.type) == ((2, 6, 5, 7), x.shape, 'meta')


def test_autocast_leaves_float64_alone():
    tensors = CASE.tensors()
    expected = call(*tensors)
    with torch.autocast('cpu', torch.bfloat16):
        found = call(*tensors)
    assert found.dtype == torch.float64 and torch.equal(found, expected)


def test_deterministic_algorithms_are_possible_and_repeatable(deterministic):
    tensors, grad = CASE.tensors(torch.float32), grad_like_output(CASE, torch.float32)
    runs = [torch.autograd.grad(call(*tensors), tensors, grad) for _ in range(3)]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_backward_can_run_twice_and_accumulates():
    tensors, grad = CASE.tensors(), grad_like_output(CASE)
    output = call(*tensors)
    first = torch.autograd.grad(output, tensors, grad, retain_graph=True)
    second = torch.autograd.grad(output, tensors, grad)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_second_order_gradients_are_refused_with_the_alternative():
    tensors = CASE.tensors()
    with pytest.raises(UpgradeError, match="Use backend='reference'"):
        torch.autograd.grad(call(*tensors).sum(), tensors[0], create_graph=True)


def test_a_frozen_input_needs_no_gradient():
    tensors = CASE.tensors()
    tensors[0] = tensors[0].detach()
    call(*tensors).sum().backward()
    assert tensors[0].grad is None and all(t.grad is not None for t in tensors[1:])


def test_zero_offsets_cost_one_pass_of_a_plain_convolution(monkeypatch):
    from mmdeform_upgrade.ops import eager

    sampled, sample = [], eager._sample
    monkeypatch.setattr(eager, '_sample', lambda *args: sampled.append(1) or sample(*args))
    inputs, offset, weight, bias, _ = (t.detach() for t in CASE.tensors(torch.float32))
    plain = torch.nn.functional.conv2d(inputs, weight, bias, **CASE.hyper, groups=CASE.groups)
    assert torch.equal(deform_conv2d(inputs, offset * 0, weight, bias, **CASE.hyper), plain) and not sampled
    deform_conv2d(inputs, offset, weight, bias, **CASE.hyper)
    assert len(sampled) == 1
    weight.requires_grad_()
    output = deform_conv2d(inputs, offset * 0, weight, bias, **CASE.hyper)
    assert torch.equal(output, plain) and len(sampled) == 1
    output.sum().backward()
    assert len(sampled) > 1 and weight.grad.abs().sum() > 0


def test_only_the_arguments_are_kept_for_the_backward_pass():
    kept = []
    tensors = CASE.tensors(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        call(*tensors)
    assert kept and set(kept) <= {t.data_ptr() for t in tensors}


@pytest.mark.parametrize('requires_grad', [False, True])
def test_tracing_records_plain_operations(requires_grad):
    tensors = CASE.tensors(torch.float32, requires_grad=requires_grad)
    traced = torch.jit.trace(call, tensors)
    others = [t * 1.5 for t in tensors]
    torch.testing.assert_close(traced(*others), call(*others))
    assert not any('mmdeform' in node.kind() for node in traced.graph.nodes())


@pytest.mark.parametrize('groups', [1, 2])
def test_flop_counters_count_the_products(groups):
    case = Case(channels=4, groups=groups, bias=False)
    forward = 2 * case.batch * 7 * 5 * case.out_channels * case.channels // groups * 9
    flops.register()  # as each upgraded layer does when it is made
    with FlopCounterMode(display=False) as counter:
        output = deform_conv2d(*case.tensors(torch.float32)[:3], **case.hyper)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * forward


def test_flop_counters_know_an_operator_that_was_imported_before_them():
    code = (
        'import torch\n'
        'from mmdeform_upgrade import ZeroOffsetDCN\n'
        'from torch.utils.flop_counter import FlopCounterMode\n'
        'layer = ZeroOffsetDCN(4, 6, 3, padding=1)\n'
        'with FlopCounterMode(display=False) as counter:\n'
        '    layer(torch.randn(1, 4, 5, 5))\n'
        'print(counter.get_total_flops())'
    )
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=root)
    assert int(result.stdout) == 2 * 4 * (6 + 18) * 9 * 25


@pytest.fixture(scope='module')
def imported_alone():
    """The operator's own imports, and what counters of a process without a layer count.

    With an empty package around it, whose own imports would hide those of the operator.
    """
    root = str(Path(__file__).resolve().parents[2] / 'mmdeform_upgrade')
    code = (
        'import json, sys, types, torch\n'
        'package = types.ModuleType("mmdeform_upgrade")\n'
        f'package.__path__ = [{root!r}]\n'
        'sys.modules["mmdeform_upgrade"] = package\n'
        'before = set(sys.modules)\n'
        'import mmdeform_upgrade.ops\n'
        'found = {"new": sorted(set(sys.modules) - before), "cuda": torch.cuda.is_initialized(), "flops": []}\n'
        'from torch.utils.flop_counter import FlopCounterMode\n'
        'for _ in range(2):\n'
        '    with FlopCounterMode(display=False) as counter:\n'
        '        shapes = (1, 4, 5, 5), (1, 18, 5, 5), (6, 4, 3, 3)\n'
        '        mmdeform_upgrade.ops.deform_conv2d(*map(torch.randn, shapes), padding=1)\n'
        '    found["flops"].append(counter.get_total_flops())\n'
        'print(json.dumps(found))'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=300)
    return json.loads(result.stdout)


def test_importing_the_operator_imports_nothing_heavy(imported_alone):
    new = {name.split('.')[0] for name in imported_alone['new']}
    assert 'mmdeform_upgrade' in new
    assert not new & {'triton', 'matplotlib', 'mmcv', 'mmengine', 'mmdet', 'torchvision'}
    ours = {name for name in imported_alone['new'] if name.startswith('mmdeform_upgrade.')}
    assert {name for name in ours if not name.startswith('mmdeform_upgrade.ops')} == {'mmdeform_upgrade.errors'}
    assert not imported_alone['cuda']


def test_a_counter_imported_after_the_operator_counts_from_its_second_use(imported_alone):
    """Registering sooner would import triton with the operator."""
    assert imported_alone['flops'] == [0, 2 * 4 * 6 * 9 * 25]
