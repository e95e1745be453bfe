"""The fast backends against the specification: every output and gradient, on every device here."""

import os
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from mmdeform_upgrade.ops import chunks, deform_conv2d

from .cases import CASES, TOLERANCE, Case, assert_close, error, grad_like_output, results

DEVICES = ['cpu'] + (['cuda'] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def backend(name):
    return lambda *args, **kwargs: deform_conv2d(*args, backend=name, **kwargs)


def on(device, tensors):
    return [None if t is None else t.detach().to(device).requires_grad_(t.requires_grad) for t in tensors]


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('name', CASES)
def test_outputs_and_gradients_are_those_of_the_specification(name, dtype, device):
    case = CASES[name]
    tensors, grad = on(device, case.tensors(dtype)), grad_like_output(case, dtype).to(device)
    expected = results(
        backend('reference'), case, on(device, [None if t is None else t.double() for t in tensors]), grad.double()
    )
    assert_close(results(backend('eager'), case, tensors, grad), expected, TOLERANCE[dtype])


@pytest.mark.parametrize('small_kernel', [0, 2**20])
@pytest.mark.parametrize('budget', [1, 700, 5000])
@pytest.mark.parametrize('name', ['plain', 'groups across deform groups', 'rectangular'])
def test_the_byte_budget_changes_nothing(name, budget, small_kernel, monkeypatch):
    monkeypatch.setitem(chunks.COLUMN_BYTES, 'cpu', budget)
    monkeypatch.setattr(chunks, 'SMALL_KERNEL_BYTES', small_kernel)
    case = CASES[name]
    tensors, grad = case.tensors(), grad_like_output(case)
    assert_close(
        results(backend('eager'), case, tensors, grad),
        results(backend('reference'), case, tensors, grad),
        TOLERANCE[torch.float64],
    )


@pytest.mark.parametrize('name', ['plain', 'deform groups'])
def test_columns_stay_within_the_byte_budget(name, monkeypatch):
    from mmdeform_upgrade.ops import eager

    monkeypatch.setitem(chunks.COLUMN_BYTES, 'cpu', 2000)
    made, sample = [], eager._sample
    monkeypatch.setattr(eager, '_sample', lambda *args: made.append(sample(*args)) or made[-1])
    case = CASES[name]
    results(backend('eager'), case, case.tensors(torch.float32), grad_like_output(case, torch.float32))
    assert len(made) > 4
    assert max(columns.numel() * 4 for columns in made) <= 2000


@pytest.mark.parametrize('wanted', [(0,), (1,), (2,), (3,), (4,), (1, 4), (0, 2), (1, 2, 3)])
def test_any_subset_of_gradients_can_be_asked_for(wanted):
    case = CASES['mask']
    tensors, grad = case.tensors(), grad_like_output(case)
    expected = results(backend('reference'), case, tensors, grad)
    some = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
    found = results(backend('eager'), case, some, grad)
    assert len(found) == len(wanted) + 1
    assert_close(found, {n: expected[n] for n in found}, TOLERANCE[torch.float64])


def test_integer_offsets_give_exactly_the_shifted_values():
    inputs = torch.randn(2, 3, 9, 11) * 1e3
    for dy, dx in [(0, 0), (1, -2), (-3, 4), (8, 10), (20, 0)]:
        offset = torch.tensor([float(dy), float(dx)]).view(1, 2, 1, 1).expand(2, 2, 9, 11)
        found = deform_conv2d(inputs, offset, torch.eye(3).view(3, 3, 1, 1), backend='eager')
        padded = F.pad(inputs, (20, 20, 20, 20))
        assert torch.equal(found, padded[:, :, 20 + dy : 29 + dy, 20 + dx : 31 + dx]), (dy, dx)


@pytest.mark.parametrize('name', ['eager', 'reference'])
def test_zero_offset_is_the_plain_convolution(name):
    case = Case(channels=64, out_channels=48, size=(13, 17), dilation=2, padding=2)
    inputs, offset, weight, bias, _ = case.tensors(torch.float32, requires_grad=False)
    expected = F.conv2d(inputs.double(), weight.double(), bias.double(), **case.hyper)
    native = error(F.conv2d(inputs, weight, bias, **case.hyper), expected)
    found = deform_conv2d(inputs, offset * 0, weight, bias, **case.hyper, backend=name)
    assert error(found, expected) <= max(2 * native, 1e-6)


def spread(result, expected):
    return float((result.double() - expected).square().mean().sqrt())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(('channels', 'outputs'), [(64, 48), (512, 48), (256, 256)])
def test_the_error_is_at_most_twice_that_of_a_plain_convolution(channels, outputs, dtype):
    case = Case(channels=channels, out_channels=outputs, size=(9, 9), batch=1)
    inputs, offset, weight, _, _ = (None if t is None else t.to(dtype) for t in case.tensors(requires_grad=False))
    plain = F.conv2d(inputs.double(), weight.double(), **case.hyper)
    native = spread(F.conv2d(inputs, weight, **case.hyper), plain)
    assert spread(deform_conv2d(inputs, offset * 0, weight, **case.hyper, backend='eager'), plain) <= 2 * native
    expected = deform_conv2d(inputs.double(), offset.double(), weight.double(), **case.hyper, backend='reference')
    found = deform_conv2d(inputs, offset, weight, **case.hyper, backend='eager')
    assert found.dtype == dtype
    assert spread(found, expected) <= 2 * native


def test_coordinates_are_not_rounded_to_half_precision():
    inputs = torch.randn(1, 1, 1, 4096).bfloat16()
    offset = torch.tensor([0.0, 0.25]).view(1, 2, 1, 1).expand(1, 2, 1, 4096).bfloat16()
    found = deform_conv2d(inputs, offset, torch.ones(1, 1, 1, 1).bfloat16(), backend='eager').double()
    expected = inputs.double() * 0.75 + F.pad(inputs.double(), (0, 1))[..., 1:] * 0.25
    assert error(found[..., :-1], expected[..., :-1]) <= 2**-8


def layouts(tensor):
    yield 'contiguous', tensor
    yield 'channels last', tensor.contiguous(memory_format=torch.channels_last)
    yield 'strided', torch.stack((tensor, tensor * torch.nan), -1)[..., 0]
    yield 'transposed', tensor.transpose(0, 3).contiguous().transpose(0, 3)
    yield 'cropped', F.pad(tensor, (3, 2, 1, 4), value=torch.nan)[:, :, 1:-4, 3:-2]


@pytest.mark.parametrize('which', range(5))
def test_memory_formats_change_nothing(which):
    case = CASES['deform groups']
    tensors, grad = case.tensors(), grad_like_output(case)
    expected = results(backend('reference'), case, tensors, grad)
    for _, changed in layouts(tensors[which].detach() if tensors[which].dim() == 4 else grad):
        some = list(tensors)
        if which == 3:  # the bias has one dimension: the incoming gradient takes its turn
            found = results(backend('eager'), case, some, changed)
        else:
            some[which] = changed.requires_grad_()
            found = results(backend('eager'), case, some, grad)
        assert_close(found, expected, TOLERANCE[torch.float64])


def test_the_memory_format_of_the_input_is_kept():
    case = Case(channels=8, out_channels=8)
    tensors = case.tensors(torch.float32)
    tensors[0] = tensors[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    output, grads = deform_conv2d(*tensors[:4], **case.hyper, backend='eager'), None
    assert output.is_contiguous(memory_format=torch.channels_last)
    grads = torch.autograd.grad(output.sum(), tensors[0])[0]
    assert grads.is_contiguous(memory_format=torch.channels_last)
    plain = deform_conv2d(tensors[0].detach().contiguous(), *tensors[1:4], **case.hyper, backend='eager')
    assert plain.is_contiguous()


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('zero', [False, True])
def test_the_output_may_be_changed_in_place(memory_format, zero):
    """By an activation behind the layer, as in VGG."""
    case = Case(bias=False, channels=8)
    inputs, offset, weight, _, _ = case.tensors()
    inputs = inputs.detach().contiguous(memory_format=memory_format).requires_grad_()
    offset = (offset * (not zero)).detach().requires_grad_()
    found, expected = (
        torch.autograd.grad(function(deform_conv2d(inputs, offset, weight, **case.hyper)).sum(), (inputs, weight))
        for function in (torch.relu_, torch.relu)
    )
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_no_uninitialised_memory_is_read(monkeypatch):
    """Every buffer that is made without a value starts as NaN, and none of it reaches a result."""
    case = Case(channels=8, groups=2, deform_groups=2, mask=True, size=(6, 7))
    tensors, grad = case.tensors(), grad_like_output(case)
    expected = results(backend('reference'), case, tensors, grad)
    empty, new_empty, empty_like = torch.empty, torch.Tensor.new_empty, torch.empty_like
    poison = lambda t: t.fill_(torch.nan) if t.is_floating_point() else t  # noqa: E731
    monkeypatch.setattr(torch, 'empty', lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, 'empty_like', lambda *a, **k: poison(empty_like(*a, **k)))
    monkeypatch.setattr(torch.Tensor, 'new_empty', lambda *a, **k: poison(new_empty(*a, **k)))
    monkeypatch.setitem(chunks.COLUMN_BYTES, 'cpu', 900)
    assert_close(results(backend('eager'), case, tensors, grad), expected, TOLERANCE[torch.float64])


FAULTS = """
import resource, torch
from mmdeform_upgrade.ops import deform_conv2d
deform_conv2d(torch.randn(1, 1, 3, 3), torch.randn(1, 18, 3, 3), torch.randn(1, 1, 3, 3), None, 1, 1)
torch.ones(5 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(5 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the allocator is another one')
def test_freed_memory_is_kept_for_the_next_piece():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(('MALLOC_', 'GLIBC_'))}
    run = subprocess.run([sys.executable, '-c', FAULTS], env=environment, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 500  # 20 MB are 5120 pages
