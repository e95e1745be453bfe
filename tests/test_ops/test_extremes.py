"""Numbers that go wrong: every backend makes the same of them, forward and backward."""

import pytest
import torch

from mmdeform_upgrade.errors import ShapeError
from mmdeform_upgrade.ops import deform_conv2d, sampling
from mmdeform_upgrade.ops.geometry import describe

from .cases import CASES, Case, grad_like_output, results
from .extremes import MANY, TALL, VALUES, WIDE, agree, planted
from .oracles import mmcv_op

BACKENDS = ['reference', 'eager', 'auto']
CASE = Case(size=(4, 3), deform_groups=2, mask=True)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('value', VALUES)
def test_backends_agree_where_offsets_are_no_use(backend, value):
    for case in (CASE, CASES['map smaller than the kernel'], CASES['one pixel'], CASES['stride']):
        agree(case, planted(case, value), backend)


def test_far_and_infinite_offsets_give_what_a_tap_of_zeros_gives():
    """And no gradient, neither to the offset nor to any pixel."""
    grad, (inputs, offset, weight, bias, mask) = grad_like_output(CASE), planted(CASE, torch.inf, torch.float64)
    far = offset.detach().isinf()
    expected = results(deform_conv2d, CASE, [inputs, offset, weight, bias, mask], grad, backend='eager')
    for value in (-torch.inf, 1e4, -1e300):
        moved = offset.detach().masked_fill(far, value).requires_grad_()
        found = results(deform_conv2d, CASE, [inputs, moved, weight, bias, mask], grad, backend='eager')
        assert all(torch.equal(found[name], expected[name]) for name in found), value
    assert not expected['gradient of offset'][far].any()


def test_a_nan_offset_stays_with_its_tap():
    tensors = planted(CASE, torch.nan)
    found = agree(CASE, tensors, 'eager')
    nan = tensors[1].isnan()
    assert found['gradient of offset'].isnan().sum() == nan.sum(), 'its partner; of a pair, both'
    assert found['output'].isnan().sum() == 3 * CASE.out_channels, 'one position for each of the three taps'
    assert 0 < found['gradient of input'].isnan().sum() <= 3 * 4 * CASE.channels // 2


@pytest.mark.compiled_mmcv
@pytest.mark.parametrize('value', VALUES[:-1])
def test_mmcv_makes_the_same_of_far_offsets(value):
    """Of a NaN offset, mmcv's CPU operator makes an access outside of the map."""
    case = Case(bias=False, size=(5, 4))
    tensors, grad = planted(case, value, torch.float64), grad_like_output(case)
    found, expected = (results(function, case, tensors, grad) for function in (deform_conv2d, mmcv_op()))
    for name in found:
        assert torch.allclose(found[name], expected[name], rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_coordinates_above_2048_keep_their_fractions(backend, dtype):
    for case in (WIDE, TALL):
        agree(case, case.tensors(dtype), backend)


@pytest.mark.parametrize('backend', BACKENDS)
def test_ten_thousand_maps_and_none(backend):
    agree(MANY, MANY.tensors(torch.float32), backend)
    assert (
        results(
            deform_conv2d,
            CASES['empty batch'],
            CASES['empty batch'].tensors(torch.float32),
            grad_like_output(CASES['empty batch'], torch.float32),
            backend=backend,
        )['output'].numel()
        == 0
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_map_smaller_than_the_kernel_is_refused_where_nothing_is_left_of_it(backend):
    with pytest.raises(
        ShapeError,
        match='input of 2x1 pixels .* smaller than the 3x3 kernel .* would be 0x-1. Use a larger input or padding',
    ):
        deform_conv2d(torch.zeros(1, 1, 2, 1), torch.zeros(1, 18, 1, 1), torch.zeros(1, 1, 3, 3), backend=backend)


@pytest.mark.parametrize('name', CASES)
def test_every_row_that_is_read_is_in_the_table(name):
    case = CASES[name]
    inputs, offset, weight, bias, mask = case.tensors(torch.float32, requires_grad=False)
    geo = describe(inputs, offset, weight, bias, mask, case.stride, case.padding, case.dilation)
    rows, columns = sampling.table_size(geo)
    for value in (*VALUES, -1.0, -2.0, float(case.size[0]), -3e9, 2.0**31):
        plan = sampling.make_plan(torch.full_like(offset, value), mask, geo, torch.float32)
        read = sampling.corners(plan.part(slice(None), slice(None)), geo).rows
        assert not read.numel() or (read.min() >= 0 and read.max() < rows * columns * geo.G), value
