"""The specification against oracles that share nothing with it."""

import pytest
import torch
import torch.nn.functional as F

from mmdeform_upgrade.ops import deform_conv2d

from .cases import CASES, TOLERANCE, Case, assert_close, error, grad_like_output, results
from .oracles import mmcv_op, scalar_loop, torchvision_op

SMALL = {n: c for n, c in CASES.items() if n != 'empty batch'}


def reference(*args, **kwargs):
    return deform_conv2d(*args, backend='reference', **kwargs)


@pytest.mark.parametrize('name', SMALL)
def test_the_specification_is_the_definition(name):
    case = SMALL[name]
    tensors = case.tensors(requires_grad=False)
    found = reference(*tensors[:4], mask=tensors[4], **case.hyper)
    expected = scalar_loop(*tensors[:4], case.pair('stride'), case.pair('padding'), case.pair('dilation'), tensors[4])
    assert error(found, expected) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize('name', ['mask', 'rectangular', 'groups across deform groups'])
def test_its_gradients_are_those_of_finite_differences(name):
    case = CASES[name]
    tensors = case.tensors()
    assert torch.autograd.gradcheck(
        lambda i, o, w, b, m: reference(i, o, w, b, mask=m, **case.hyper), tensors, fast_mode=True
    )


def test_its_second_order_gradients_are_those_of_finite_differences():
    case = Case(batch=1, channels=2, out_channels=2, size=(4, 3), mask=True)
    tensors = case.tensors()
    assert torch.autograd.gradgradcheck(
        lambda i, o, w, b, m: reference(i, o, w, b, mask=m, **case.hyper), tensors, fast_mode=True
    )


@pytest.mark.parametrize('name', [n for n in SMALL if n not in ('map smaller than the kernel', 'one pixel')])
@pytest.mark.parametrize('peer', [pytest.param(mmcv_op, marks=pytest.mark.compiled_mmcv), torchvision_op])
def test_installed_peers_agree(peer, name):
    function, case = peer(), SMALL[name]
    if function is None:
        pytest.skip('not installed')
    tensors, grad = case.tensors(), grad_like_output(case)
    assert_close(results(function, case, tensors, grad), results(reference, case, tensors, grad), 1e-10)


def test_zero_offset_is_the_plain_convolution():
    case = Case(channels=6, groups=2, stride=(1, 2))
    inputs, offset, weight, bias, _ = case.tensors(requires_grad=False)
    expected = F.conv2d(inputs, weight, bias, groups=2, **case.hyper)
    assert error(reference(inputs, offset * 0, weight, bias, **case.hyper), expected) <= TOLERANCE[torch.float64]
