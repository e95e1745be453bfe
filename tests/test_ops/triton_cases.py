"""The Triton backend, interpreted on a CPU. Run by ``test_triton.py`` in a process of its own, since the interpreter
has to be chosen before triton is imported."""

import functools
from collections import Counter
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from mmdeform_upgrade.errors import UpgradeError
from mmdeform_upgrade.ops import chunks, deform_conv2d, triton_backend
from mmdeform_upgrade.ops.geometry import describe
from mmdeform_upgrade.ops.matrices import format_of
from mmdeform_upgrade.ops.passes import Operands, Wanted

from .cases import CASES, TOLERANCE, Case, assert_close, grad_like_output, results
from .extremes import WIDE, agree, only_own_memory, planted

torch.backends.cudnn.allow_tf32 = False
_DOT = interpreter.InterpreterBuilder.create_dot


def _dot(self, a, b, *rest):
    """The interpreter multiplies the bits of bfloat16 as if they were integers."""
    a, b = (self.create_fp_ext(t, tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b))
    return _DOT(self, a, b, *rest)


interpreter.InterpreterBuilder.create_dot = _dot
HALF = Case(batch=1, channels=3, out_channels=5, size=(4, 3), mask=True)


def compare(case, dtype, device='cpu'):
    tensors = [None if t is None else t.detach().to(device).requires_grad_() for t in case.tensors(dtype)]
    grad = grad_like_output(case, dtype).to(device)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    expected = results(deform_conv2d, case, exact, grad.double(), backend='reference')
    assert_close(results(deform_conv2d, case, tensors, grad, backend='triton'), expected, TOLERANCE[dtype])


@pytest.mark.parametrize('name', CASES)
def test_outputs_and_gradients_are_those_of_the_specification(name):
    """Of several pictures where their number matters, of one elsewhere: the interpreter is slow."""
    case = CASES[name]
    several = name in ('plain', 'deform groups', 'one pixel')
    compare(case if several else replace(case, batch=min(case.batch, 1)), torch.float32)


def test_a_forward_pass_by_columns(monkeypatch):
    monkeypatch.setattr(triton_backend, 'FUSED', False)
    compare(CASES['mask'], torch.float32)


@pytest.mark.parametrize('last,size', [('', (4, 4)), ('input', (4, 4)), ('offset', (2, 3)), ('input offset', (2, 2))])
def test_memory_formats_change_nothing_and_are_kept(last, size):
    """A contiguous map of sixteen positions, or a multiple of that, is written by the kernel itself."""
    case = Case(batch=1, channels=3, out_channels=5, size=size, mask=True)
    tensors, grad = case.tensors(torch.float32), grad_like_output(case, torch.float32)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = results(deform_conv2d, case, exact, grad.double(), backend='reference')
    for i, name in enumerate(('input', 'offset')):
        if name in last:
            tensors[i] = tensors[i].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    found = results(deform_conv2d, case, tensors, grad, backend='triton')
    assert_close(found, expected, TOLERANCE[torch.float32])
    assert found['output'].is_contiguous(memory_format=format_of(tensors[0]))
    for name, like in (('input', tensors[0]), ('offset', tensors[1])):
        assert found[f'gradient of {name}'].is_contiguous(memory_format=format_of(like))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('groups', [1, 3])
def test_half_precision(dtype, groups):
    compare(Case(**{**vars(HALF), 'groups': groups, 'out_channels': 6}), dtype)


def test_tf32_is_rounded_not_cut_off(monkeypatch):
    """Products of the matrix units are exact: the error is that of the values, half a unit of ten bits at most."""
    case = Case(batch=1, channels=1, out_channels=16, size=(40, 40), kernel=(1, 1), padding=0, bias=False)
    inputs, offset, weight, _, _ = case.tensors(torch.float32, requires_grad=False)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    for kernel in (torch.ones_like(weight), weight):
        exact = deform_conv2d(inputs.double(), offset.double() * 0, kernel.double(), backend='reference')
        errors = deform_conv2d(inputs, offset * 0, kernel, backend='triton').double() / exact - 1
        assert 2**-12 < errors.abs().max() <= (1 if kernel.unique().numel() == 1 else 2) * 2**-11 * 1.001
        assert kernel is weight or errors.mean().abs() < 2**-14, 'cut off, they would be too small by 2^-11 in the mean'


class LittleMemory:
    """A GPU that has the shared memory for tiles of 64 positions and no more."""

    def __init__(self, kernel):
        self.kernel, self.asked = kernel, []

    def __getitem__(self, grid):

        def launch(*args, **options):
            self.asked.append((options['BLOCK_P'], options['num_stages']))
            if options['BLOCK_P'] > 64:
                raise triton.OutOfResources(200000, 101376, 'shared memory')
            return self.kernel[grid](*args, **options)

        return launch


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_a_gpu_with_less_shared_memory_gets_smaller_tiles(monkeypatch, dtype):
    little = LittleMemory(triton_backend.convolve_kernel)
    monkeypatch.setattr(triton_backend, 'convolve_kernel', little)
    monkeypatch.setattr(triton_backend, '_fits', {})
    for _ in range(2):
        compare(HALF, dtype)
    assert little.asked[-1][0] == 64 and little.asked.count(little.asked[-1]) == 2, 'the second time at once'
    monkeypatch.setattr(triton_backend, '_fits', {})
    largest = {size: tiles[:1] for size, tiles in triton_backend._CONVOLVE.items()}
    monkeypatch.setattr(triton_backend, '_CONVOLVE', largest)
    with pytest.raises(triton.OutOfResources):
        compare(HALF, dtype)


def test_more_channels_than_one_tile_holds():
    compare(Case(batch=1, channels=70, out_channels=140, size=(3, 3), kernel=(2, 1), padding=0), torch.float32)


@pytest.mark.parametrize('budget', [1, 300])
def test_the_byte_budget_changes_nothing(budget, monkeypatch):
    monkeypatch.setitem(chunks.COLUMN_BYTES, 'cpu', budget)
    monkeypatch.setattr(chunks, 'SMALL_KERNEL_BYTES', 0)
    compare(Case(batch=1, size=(3, 2), kernel=(2, 2), padding=1, mask=True), torch.float32)


def test_extreme_offsets_read_nothing_outside():
    case = Case(batch=1, size=(4, 4))
    inputs, offset, weight, bias, _ = case.tensors(torch.float32, requires_grad=False)
    for value in (torch.inf, -torch.inf, 1e30, -3e9):
        found = deform_conv2d(inputs, torch.full_like(offset, value), weight, bias, **case.hyper, backend='triton')
        assert torch.equal(found, bias.view(1, -1, 1, 1).expand_as(found)), value
    found = deform_conv2d(inputs, torch.full_like(offset, torch.nan), weight, bias, **case.hyper, backend='triton')
    assert found.isnan().all()


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_offsets_that_are_no_use_read_nothing_outside_and_agree(value):
    case = Case(batch=1, channels=2, out_channels=2, size=(2, 2), kernel=(2, 1), padding=(1, 0), mask=True)
    with only_own_memory() as touched:
        agree(case, planted(case, value), 'triton')
    assert touched[0] > 100


@triton.jit
def _fill(pointer, count, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(pointer + at, 1.0, mask=at < count)


def test_the_guard_of_the_memory_sees_an_access_outside():
    memory = torch.zeros(8)
    with only_own_memory():
        _fill[(1,)](memory[:5], 5, BLOCK=8)
        with pytest.raises(Exception, match='1 of 6 accesses are outside of all tensors'):
            _fill[(1,)](memory[:5], 6, BLOCK=8)
    assert memory.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]


def test_coordinates_above_2048_keep_their_fractions():
    inputs, *others = WIDE.tensors(torch.float16)
    agree(WIDE, [inputs.detach(), *others], 'triton')  # without the gradient of 4400 pixels, a program each


def test_compile_needs_no_graph_break():
    case = HALF
    tensors, grad = case.tensors(torch.float32), grad_like_output(case, torch.float32)
    compiled = torch.compile(deform_conv2d, fullgraph=True, backend='aot_eager')
    assert_close(
        results(compiled, case, tensors, grad, backend='triton'),
        results(deform_conv2d, case, tensors, grad, backend='triton'),
        1e-6,
    )


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_the_operators_meet_the_rules_of_the_dispatcher(memory_format):
    """They return nothing that shares memory with what they were given, and what their fakes promise."""
    inputs, offset, weight, bias, mask = HALF.tensors(torch.float32, requires_grad=False)
    inputs = inputs.contiguous(memory_format=memory_format)
    geo = list(describe(inputs, offset, weight, bias, mask, 1, 1, 1))
    operators, tests = torch.ops.mmdeform_upgrade, ('test_schema', 'test_faketensor')
    arguments = (inputs, offset, weight, bias, mask, geo, 'triton')
    torch.library.opcheck(operators.deform_conv2d, arguments, test_utils=tests)
    output = operators.deform_conv2d(*arguments)
    arguments = (output, inputs, offset, weight, mask, geo, 'triton', [True, True, True])
    torch.library.opcheck(operators.deform_conv2d_backward, arguments, test_utils=tests)


class Counted(TorchDispatchMode):
    """The operations that a function asks of PyTorch, and its launches of kernels, which do nothing."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.operations, self.launches = Counter(), Counter()
        for name in ('convolve_kernel', 'sample_kernel', 'gather_kernel'):
            launch = functools.partial(self.launches.update, [name])
            kernel = type('Kernel', (), {'__getitem__': lambda self, grid, f=launch: lambda *a, **k: f()})()
            monkeypatch.setattr(triton_backend, name, kernel)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_channels_last_is_read_and_written_in_place(dtype, monkeypatch):
    tensors = Case(channels=16, out_channels=16, bias=False).tensors(dtype, requires_grad=False)
    inputs, offset, weight = (t.contiguous(memory_format=torch.channels_last) for t in tensors[:3])
    geo, operands = describe(inputs, offset, weight, None, None, 1, 1, 1), Operands(inputs, offset, weight, None, None)
    with Counted(monkeypatch) as forward:
        output = triton_backend.forward(operands, geo)
    with Counted(monkeypatch) as backward:
        triton_backend.backward(output, operands, geo, Wanted(True, True, True))
    assert dict(forward.launches) == {'convolve_kernel': 1}
    assert dict(backward.launches) == {'sample_kernel': 1, 'gather_kernel': 1}
    copies = {'clone', 'copy_', '_to_copy', 'contiguous'}
    assert not copies & (set(forward.operations) | set(backward.operations))


def test_deterministic_algorithms_are_possible():
    case = HALF
    tensors, grad = case.tensors(torch.float32), grad_like_output(case, torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (results(deform_conv2d, case, tensors, grad, backend='triton') for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_float64_is_refused():
    with pytest.raises(UpgradeError, match='no float64'):
        deform_conv2d(*HALF.tensors()[:3], **HALF.hyper, backend='triton')
