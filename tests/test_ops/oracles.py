"""Implementations that share no line with the package: a scalar loop, mmcv's and torchvision's operators."""

import importlib.util
import math
from functools import cache

import torch


def scalar_loop(inputs, offset, weight, bias, stride, padding, dilation, mask):
    """The definition, number by number, in Python floats. Only for outputs."""
    (N, C, H, W), (O, per_group, kh, kw) = inputs.shape, weight.shape  # noqa: E741
    Ho, Wo = offset.shape[2:]
    groups, G = C // per_group, offset.shape[1] // (2 * kh * kw)
    output = torch.zeros(N, O, Ho, Wo, dtype=torch.float64)
    pixels = inputs.tolist()

    def pixel(n, c, y, x):
        return pixels[n][c][y][x] if 0 <= y < H and 0 <= x < W else 0.0

    def sample(n, c, y, x):
        y0, x0 = math.floor(y), math.floor(x)
        return sum(
            pixel(n, c, y0 + i, x0 + j) * (1 - abs(y - y0 - i)) * (1 - abs(x - x0 - j)) for i in (0, 1) for j in (0, 1)
        )

    for n in range(N):
        for oy in range(Ho):
            for ox in range(Wo):
                for o in range(O):
                    total = 0.0 if bias is None else float(bias[o])
                    for c in range(per_group):
                        channel = o // (O // groups) * per_group + c
                        g = channel // (C // G)
                        for k in range(kh * kw):
                            dy, dx = offset[n, (g * kh * kw + k) * 2 : (g * kh * kw + k) * 2 + 2, oy, ox].tolist()
                            y = oy * stride[0] - padding[0] + k // kw * dilation[0] + dy
                            x = ox * stride[1] - padding[1] + k % kw * dilation[1] + dx
                            m = 1.0 if mask is None else float(mask[n, g * kh * kw + k, oy, ox])
                            total += float(weight[o, c, k // kw, k % kw]) * sample(n, channel, y, x) * m
                    output[n, o, oy, ox] = total
    return output


@cache
def mmcv_op():
    """mmcv's compiled operators as a function of our signature, or None."""
    if importlib.util.find_spec('mmcv') is None:
        return None
    try:
        from mmcv.ops import deform_conv2d as first
        from mmcv.ops import modulated_deform_conv2d as second

        x = torch.zeros(1, 1, 1, 1)
        first(x, torch.zeros(1, 2, 1, 1), x)
    except (ImportError, NotImplementedError):
        return None

    def function(inputs, offset, weight, bias=None, stride=1, padding=0, dilation=1, mask=None):
        groups = inputs.shape[1] // weight.shape[1]
        G = offset.shape[1] // (2 * weight.shape[2] * weight.shape[3])
        if mask is not None:
            return second(inputs, offset, mask, weight, bias, stride, padding, dilation, groups, G)
        output = first(inputs, offset, weight, stride, padding, dilation, groups, G)
        return output if bias is None else output + bias.view(1, -1, 1, 1)

    return function


@cache
def torchvision_op():
    """torchvision's operator, or None where its compiled part does not load."""
    try:
        from torchvision.ops import deform_conv2d

        x = torch.zeros(1, 1, 1, 1)
        deform_conv2d(x, torch.zeros(1, 2, 1, 1), x)
    except (ImportError, RuntimeError, OSError, AttributeError, NotImplementedError):
        return None
    return deform_conv2d
