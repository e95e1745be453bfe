"""Refused calls: each message says what was found and what was expected."""

import pytest
import torch

from mmdeform_upgrade.errors import ShapeError, UpgradeError
from mmdeform_upgrade.ops import deform_conv2d, functional

from .cases import Case

CASE = Case(channels=4, groups=2, mask=True)


def arguments(**changes):
    names = ('input', 'offset', 'weight', 'bias', 'mask')
    return {**dict(zip(names, CASE.tensors(torch.float32), strict=True)), **CASE.hyper, **changes}


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(input=torch.zeros(4, 7, 5)), r'input has shape \(4, 7, 5\); expected four dimensions'),
        (dict(weight=torch.zeros(6, 3, 3, 3)), 'second size divides the input channels'),
        (dict(weight=torch.zeros(5, 2, 3, 3)), '5 output channels cannot be split into the 2 groups'),
        (dict(offset=torch.zeros(2, 17, 7, 5)), r'offset has 17 channels; expected a multiple of 2\*kh\*kw = 18'),
        (dict(offset=torch.zeros(2, 54, 7, 5)), 'deform_groups dividing the 4 input channels'),
        (dict(offset=torch.zeros(2, 18, 6, 5)), r'offset has shape \(2, 18, 6, 5\); expected \(2, 18, 7, 5\)'),
        (dict(mask=torch.zeros(2, 18, 7, 5)), r'mask has shape .* expected \(2, 9, 7, 5\)'),
        (dict(bias=torch.zeros(5)), r'bias has shape \(5,\); expected \(6,\)'),
        (dict(padding=(1, 2, 3)), r'padding is \(1, 2, 3\); expected one or two integers, each at least 0'),
        (dict(stride=0), 'stride is 0; expected one or two integers, each at least 1'),
        (dict(dilation=9), 'smaller than the 3x3 kernel .* Use a larger input or padding'),
    ],
)
def test_a_wrong_shape_is_refused_with_what_was_expected(changes, message):
    with pytest.raises(ShapeError, match=message):
        deform_conv2d(**arguments(**changes))


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(backend='cuda'), "backend 'cuda' is unknown; expected one of auto, reference, eager, triton"),
        (dict(weight=CASE.tensors()[2]), 'weight is torch.float64 and input torch.float32; cast one of them'),
        (dict(offset=CASE.tensors()[1].long()), 'offset is torch.int64; expected float16'),
        (dict(mask=CASE.tensors(torch.float32)[4].to('meta')), 'mask is on meta and input on cpu'),
    ],
)
def test_a_wrong_type_is_refused_with_what_was_expected(changes, message):
    with pytest.raises(UpgradeError, match=message):
        deform_conv2d(**arguments(**changes))


def test_offsets_of_another_precision_than_the_values_are_welcome():
    names = dict(input=torch.bfloat16, weight=torch.bfloat16, bias=torch.bfloat16)
    kept = {
        n: t.to(names.get(n, torch.float32)).detach().requires_grad_() if torch.is_tensor(t) else t
        for n, t in arguments().items()
    }
    output = deform_conv2d(**kept)
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert kept['offset'].grad.dtype == kept['mask'].grad.dtype == torch.float32
    assert kept['input'].grad.dtype == kept['weight'].grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    'version,message',
    [
        (0, "needs the package triton, version 3 or newer; it is not installed; use backend='eager'"),
        (2, "needs the package triton, version 3 or newer; version 2 is installed; use backend='eager'"),
    ],
)
def test_a_triton_that_is_missing_or_too_old_is_refused(monkeypatch, version, message):
    monkeypatch.setattr(functional, '_TRITON', version)
    with pytest.raises(UpgradeError, match=message):
        deform_conv2d(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2), torch.zeros(1, 1, 1, 1), backend='triton')
