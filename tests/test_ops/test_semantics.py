"""What a sample is where it matters: at integers, on the border, far outside, at infinity and NaN."""

import pytest
import torch

from mmdeform_upgrade.ops import deform_conv2d

from .cases import CASES, Case, assert_close, grad_like_output, results
from .oracles import mmcv_op, torchvision_op

BACKENDS = ['reference', 'eager']
ONE = torch.ones(1, 1, 1, 1, dtype=torch.float64)


def at(inputs, y, x, backend):
    """Value of a one-channel map at (y, x), and its derivatives there."""
    offset = torch.tensor([float(y), float(x)], dtype=torch.float64).view(1, 2, 1, 1).requires_grad_()
    inputs = inputs[..., :1, :1] if inputs.shape[-2:] == (1, 1) else inputs
    height, width = inputs.shape[-2:]
    output = deform_conv2d(inputs, offset.expand(1, 2, height, width), ONE, backend=backend)[0, 0, 0, 0]
    return float(output.detach()), torch.autograd.grad(output, offset)[0].flatten().tolist()


@pytest.mark.parametrize('backend', BACKENDS)
def test_the_derivative_at_an_integer_is_the_one_from_the_right(backend):
    inputs = torch.randn(1, 1, 3, 4, dtype=torch.float64)
    padded = torch.nn.functional.pad(inputs, (1, 2, 1, 2))[0, 0]  # pixel (y, x) is at [y + 1, x + 1]
    for y in range(-1, 4):
        for x in range(-1, 5):
            value, (dy, dx) = at(inputs, y, x, backend)
            here = padded[y + 1, x + 1]
            assert value == here
            assert dy == pytest.approx(float(padded[y + 2, x + 1] - here) if y < 3 else 0.0)
            assert dx == pytest.approx(float(padded[y + 1, x + 2] - here) if x < 4 else 0.0)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('outside', [-2.0, -1.5, 3.0, 3.5, 1e6, -1e30, 3e38, float('inf'), -float('inf')])
def test_outside_everything_is_zero(outside, backend):
    inputs = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    for y, x in [(outside, 1.0), (1.0, outside), (outside, -outside)]:
        value, (dy, dx) = at(inputs, y, x, backend)
        assert (value, dy, dx) == (0, 0, 0), (y, x)


@pytest.mark.parametrize('backend', BACKENDS)
def test_between_border_and_outside_the_sample_fades_to_zero(backend):
    inputs = torch.full((1, 1, 3, 3), 8.0, dtype=torch.float64)
    assert at(inputs, -0.25, 1, backend) == (6.0, [8.0, 0.0])
    assert at(inputs, 2.75, 1, backend) == (2.0, [-8.0, 0.0])
    assert at(inputs, 1, 2.5, backend) == (4.0, [0.0, -8.0])


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_nan_offset_gives_nan_where_it_is_used_and_nowhere_else(backend):
    case = Case(size=(5, 5))
    tensors = case.tensors(torch.float32, requires_grad=False)
    expected = deform_conv2d(*tensors[:4], **case.hyper, backend=backend)
    tensors[1][1, 7, 2, 3] = torch.nan
    found = deform_conv2d(*tensors[:4], **case.hyper, backend=backend)
    assert found[1, :, 2, 3].isnan().all()
    found[1, :, 2, 3] = expected[1, :, 2, 3]
    assert torch.equal(found, expected)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_extreme_offsets_never_read_outside_the_map(dtype):
    """Every extreme value in every place, the map surrounded by NaN in memory."""
    case = Case(size=(4, 3), deform_groups=2)
    inputs, offset, weight, _, _ = case.tensors(dtype, requires_grad=False)
    storage = torch.full((3 * inputs.numel(),), torch.nan, dtype=dtype)
    inside = storage[inputs.numel() : 2 * inputs.numel()].view_as(inputs).copy_(inputs).requires_grad_()
    for value in (torch.inf, -torch.inf, torch.finfo(dtype).max, torch.finfo(dtype).min, -1.0, 4.0, 3.0, -2.0):
        extreme = torch.full_like(offset, value).requires_grad_()
        output = deform_conv2d(inside, extreme, weight, **case.hyper, backend='eager')
        grads = torch.autograd.grad(output.sum(), (inside, extreme))
        assert all(t.isfinite().all() for t in (output, *grads)), value


@pytest.mark.parametrize('peer', [torchvision_op, pytest.param(mmcv_op, marks=pytest.mark.compiled_mmcv)])
def test_zero_offset_gradients_at_the_border_are_those_of_torchvision(peer):
    """mmcv instead gives zero where a tap is exactly one pixel outside the map."""
    function, case = peer(), Case(bias=False, size=(4, 5))
    if function is None:
        pytest.skip('not installed')
    inputs, offset, weight, _, _ = case.tensors()
    tensors = [inputs, (offset * 0).detach().requires_grad_(), weight, None, None]
    grad = grad_like_output(case)
    found, expected = results(deform_conv2d, case, tensors, grad), results(function, case, tensors, grad)
    if peer is mmcv_op:
        ours, theirs = found.pop('gradient of offset'), expected.pop('gradient of offset')
        differs = (ours - theirs).abs() > 1e-9
        assert differs.any() and (theirs[differs] == 0).all()
        assert not differs[:, :, 1:-1, 1:-1].any()
    assert_close(found, expected, 1e-10)


def test_a_tap_that_starts_outside_can_learn_its_way_in():
    """Why the derivative from the right is kept at the border: at step 0 the padding's taps sit exactly there."""
    case = CASES['plain']
    inputs, offset, weight, _, _ = case.tensors()
    zero = (offset * 0).detach().requires_grad_()
    deform_conv2d(inputs, zero, weight, **case.hyper).square().sum().backward()
    assert (zero.grad[:, 0, 0] != 0).any()  # dy of the upper left tap, first row of positions
