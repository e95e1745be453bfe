"""Cases and measures that the operator's tests share."""

from dataclasses import dataclass

import torch

# Largest accepted error, relative to the largest value of the expected tensor.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
NAMES = ('input', 'offset', 'weight', 'bias', 'mask')


@dataclass(frozen=True)
class Case:
    """The sizes of one call; odd ones on purpose."""

    batch: int = 2
    channels: int = 4
    size: tuple = (7, 5)
    out_channels: int = 6
    kernel: tuple = (3, 3)
    stride: object = 1
    padding: object = 1
    dilation: object = 1
    groups: int = 1
    deform_groups: int = 1
    bias: bool = True
    mask: bool = False
    sigma: float = 1.5

    def pair(self, name):
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value, value)

    @property
    def out_size(self):
        sizes = zip(self.size, self.kernel, *map(self.pair, ('stride', 'padding', 'dilation')), strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)

    def tensors(self, dtype=torch.float64, requires_grad=True):
        """input, offset, weight, bias and mask; the last two may be None."""
        taps = self.kernel[0] * self.kernel[1] * self.deform_groups
        made = [
            torch.randn(self.batch, self.channels, *self.size, dtype=torch.float64),
            torch.randn(self.batch, 2 * taps, *self.out_size, dtype=torch.float64) * self.sigma,
            torch.randn(self.out_channels, self.channels // self.groups, *self.kernel, dtype=torch.float64),
            torch.randn(self.out_channels, dtype=torch.float64) if self.bias else None,
            torch.rand(self.batch, taps, *self.out_size, dtype=torch.float64) if self.mask else None,
        ]
        return [None if t is None else t.to(dtype).requires_grad_(requires_grad) for t in made]

    @property
    def hyper(self):
        return dict(stride=self.stride, padding=self.padding, dilation=self.dilation)


CASES = {
    'plain': Case(),
    'no bias': Case(bias=False),
    'mask': Case(mask=True),
    'stride': Case(size=(9, 8), stride=2),
    'rectangular': Case(kernel=(3, 2), stride=(2, 1), padding=(2, 0), dilation=(1, 2), size=(8, 7)),
    'pointwise': Case(kernel=(1, 1), padding=0),
    'row kernel': Case(kernel=(1, 5), padding=(0, 2), batch=1),
    'dilation': Case(dilation=3, padding=3, size=(6, 9)),
    'groups': Case(channels=8, groups=2),
    'depthwise': Case(channels=6, out_channels=6, groups=6),
    'deform groups': Case(channels=6, deform_groups=3, mask=True),
    'groups across deform groups': Case(channels=12, groups=3, deform_groups=2, mask=True, stride=2),
    'map smaller than the kernel': Case(size=(2, 1), kernel=(5, 3), padding=(2, 1)),
    'one pixel': Case(size=(1, 1), batch=3),
    'far offsets': Case(sigma=30.0),
    'empty batch': Case(batch=0, mask=True, deform_groups=2),
}


def run(function, case, tensors, grad_output, **options):
    """Output and the gradients of all tensors that there are."""
    inputs, offset, weight, bias, mask = tensors
    output = function(inputs, offset, weight, bias, mask=mask, **case.hyper, **options)
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    return output, torch.autograd.grad(output, wanted, grad_output.to(output.dtype))


def results(function, case, tensors, grad_output, **options):
    """What :func:`run` returns, by name."""
    output, grads = run(function, case, tensors, grad_output, **options)
    names = [n for n, t in zip(NAMES, tensors, strict=True) if t is not None and t.requires_grad]
    return {'output': output.detach(), **{f'gradient of {n}': g for n, g in zip(names, grads, strict=True)}}


def grad_like_output(case, dtype=torch.float64):
    return torch.randn(case.batch, case.out_channels, *case.out_size, dtype=torch.float64).to(dtype)


def error(result, expected):
    """Largest difference, relative to the largest expected value; infinite where only one of them is finite."""
    assert result.shape == expected.shape, (result.shape, expected.shape)
    if not expected.numel():
        return 0.0
    difference = (result.double() - expected.double()).abs().max()
    return float((difference / expected.double().abs().max().clamp_min(1e-30)).nan_to_num(torch.inf))


def assert_close(found, expected, tolerance):
    """Compare two results of :func:`results`; reports all that differ."""
    assert found.keys() == expected.keys()
    wrong = {n: error(found[n], expected[n]) for n in expected if not error(found[n], expected[n]) <= tolerance}
    assert not wrong, f'errors above {tolerance}: {wrong}'
