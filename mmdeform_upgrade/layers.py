# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""``ZeroOffsetDCN``: a deformable convolution (DCNv1) that starts as the plain convolution it replaces.

Vocabulary: N, C, H, W; K = kh * kw taps; G = deform groups; offsets in pixels, ``(dy, dx)`` per tap.
"""

from __future__ import annotations

import re
from functools import cache
from inspect import Parameter, isfunction, signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import TargetError, UpgradeError
from .ops import deform_conv2d, flops
from .ops.autocast import autocast
from .ops.geometry import IntPair, is_whole

_MERGING = re.compile(
    r'(?:switch|convert)_to_deploy|get_equivalent_\w+|merge_kernel|reparam(?:eteri[sz]e)?|local_inject|fuse'
)


class OffsetBranch(nn.Module):
    """The convolution that predicts offsets, all zeros until it is trained.

    It is no ``nn.Conv2d`` on purpose: initialisers that look for one (``init_cfg`` with ``layer='Conv2d'``, loops over
    ``isinstance(m, nn.Conv2d)``) would overwrite the zeros (mmdetection PR #6625).

    Input (N, C, H, W), output (N, 2GK, Ho, Wo).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int], device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *kernel_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zeros again; FSDP and others call it after they have moved a network from the meta device."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor, stride, padding, dilation) -> Tensor:
        return F.conv2d(input, self.weight, self.bias, stride, padding, dilation)

    def is_zero(self) -> bool:
        """Whether every offset is exactly zero on any input."""
        return not (bool(self.weight.any()) or bool(self.bias.any()))

    def extra_repr(self) -> str:
        out_channels, in_channels, *kernel_size = self.weight.shape
        return f'{in_channels}, {out_channels}, kernel_size={tuple(kernel_size)}'


class ZeroOffsetDCN(nn.Conv2d):
    """Deformable convolution (DCNv1, Dai et al. 2017, eq. 2) whose offsets start at exactly zero.

    With zero offsets it computes what ``nn.Conv2d`` with the same arguments computes, and gradients reach its offsets
    from the first step on. The parameters are ``weight``, ``bias``, ``conv_offset.weight`` and ``conv_offset.bias``:
    the names and the layout of mmcv's ``DCN``, so the keys of a plain convolution are kept.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        kernel_size: int or (kh, kw).
        stride: int or (sh, sw).
        padding: int, (ph, pw), ``'same'`` or ``'valid'``.
        dilation: int or (dh, dw).
        groups: groups of the convolution.
        bias: whether the output gets a bias.
        padding_mode: as in ``nn.Conv2d``; other modes than ``'zeros'`` pad first and sample from the padded map.
        deform_groups: G, groups of input channels that share offsets; divides ``in_channels``.

    Shapes: input (N, C, H, W) or (C, H, W), output as ``nn.Conv2d``'s.

    Raises:
        UpgradeError: ``deform_groups`` does not divide ``in_channels``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: str | IntPair = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = 'zeros',
        deform_groups: int = 1,
        device=None,
        dtype=None,
    ):
        if not divides(deform_groups, in_channels):
            raise UpgradeError(
                f'deform_groups={deform_groups!r} does not divide in_channels={in_channels}: give a divisor, or 1'
            )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        self.deform_groups = deform_groups
        flops.register(load=True)
        # torch.fx takes modules of torch.nn as leaves; a Conv2d is one, and efficient_conv_bn_eval looks for it.
        self.__module__ = nn.Conv2d.__module__
        kh, kw = self.kernel_size
        self.conv_offset = OffsetBranch(in_channels, 2 * deform_groups * kh * kw, (kh, kw), device=device, dtype=dtype)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, deform_groups: int = 1) -> ZeroOffsetDCN:
        """The deformable twin of ``conv``, holding the very same ``weight`` and ``bias`` parameters.

        Device, dtype, training flag, ``requires_grad`` and attributes that others have set on it are carried over; a
        frozen convolution gets a frozen offset branch.

        Raises:
            TargetError: ``conv`` is not exactly an ``nn.Conv2d``, or carries something that would be lost.
        """
        reason = why_not_upgradable(conv, deform_groups)
        if reason:
            raise TargetError(f'{type(conv).__name__} cannot become a ZeroOffsetDCN: {reason}')
        layer = cls(**_arguments(conv), deform_groups=deform_groups, device='meta')
        weight = conv.weight
        layer.conv_offset.to_empty(device=weight.device).to(weight.dtype).requires_grad_(weight.requires_grad)
        layer.conv_offset.reset_parameters()
        return _taken_over(layer, conv)

    def to_conv(self, *, force: bool = False) -> nn.Conv2d:
        """The plain convolution with the same ``weight`` and ``bias`` parameters.

        Args:
            force: drop the offset branch even where it is not zero, which changes the output.

        Raises:
            UpgradeError: the offset branch is not exactly zero and ``force`` is not given.
        """
        if not (force or self.conv_offset.is_zero()):
            largest = max(float(p.detach().abs().max()) for p in self.conv_offset.parameters())
            raise UpgradeError(
                f'the offset branch is not zero (largest parameter {largest:.3g}), so a plain '
                'convolution would compute something else: pass force=True to drop it all the same'
            )
        conv = _taken_over(nn.Conv2d(**_arguments(self), device='meta'), self)
        del conv.deform_groups
        return conv

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # MMEngine's efficient_conv_bn_eval calls this with weights of its own.
        if input.dim() == 3:
            return self._conv_forward(input.unsqueeze(0), weight, bias).squeeze(0)
        input, weight, bias = autocast(input, weight, bias)  # once for both convolutions
        padding: Any
        if self.padding_mode != 'zeros':
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        elif isinstance(self.padding, str):
            input, padding = self._pad_by_name(input)
        else:
            padding = self.padding
        offset = self.conv_offset(input, self.stride, padding, self.dilation)  # (N, 2GK, Ho, Wo)
        stride: Any = self.stride
        dilation: Any = self.dilation
        return deform_conv2d(input, offset, weight, bias, stride, padding, dilation)

    def _pad_by_name(self, input: Tensor) -> tuple[Tensor, tuple[int, int]]:
        # 'same' pads an even kernel more on one side, which a symmetric padding argument cannot say.
        left, right, top, bottom = self._reversed_padding_repeated_twice
        if left == right and top == bottom:
            return input, (top, left)
        return F.pad(input, (left, right, top, bottom)), (0, 0)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.deform_groups == 1 else f'{text}, deform_groups={self.deform_groups}'


def _arguments(conv: nn.Conv2d) -> dict[str, Any]:
    names = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups', 'padding_mode')
    return {**{name: getattr(conv, name) for name in names}, 'bias': conv.bias is not None}


def _taken_over(new: Any, old: nn.Conv2d) -> Any:
    """A layer with the parameters of another one, and whatever others have set on that."""
    vars(new).update({name: value for name, value in vars(old).items() if name not in vars(new) and name[0] != '_'})
    new.weight, new.bias = old.weight, old.bias
    return new.train(old.training)


def divides(deform_groups: Any, channels: int) -> bool:
    """Whether channels can be split into so many deform groups."""
    return is_whole(deform_groups, 1) and channels % deform_groups == 0


def why_not_upgradable(module: nn.Module, deform_groups: int = 1) -> str | None:
    """Why ``module`` cannot become a ``ZeroOffsetDCN`` without a change of its meaning, or None if it can."""
    if isinstance(module, ZeroOffsetDCN):
        return 'it is deformable already'
    if type(module) is not nn.Conv2d:
        if isinstance(module, nn.Conv2d):
            kind = f'{type(module).__module__}.{type(module).__qualname__}'
            return f'it is a subclass of Conv2d ({kind}) with a forward of its own'
        return f'it is a {type(module).__qualname__}, not a Conv2d'
    if own := _own(module):
        return f'it has hooks, a computed weight (weight_norm, LoRA) or parts of its own ({own}), which would be lost'
    if module.weight.is_complex():
        return f'its dtype is {module.weight.dtype}'
    if not divides(deform_groups, module.in_channels):
        return f'deform_groups={deform_groups!r} does not divide its {module.in_channels} input channels'
    return None


def _own(conv: nn.Conv2d) -> str:
    """What a convolution has that no other has: hooks, parameters, methods set on it; names them."""
    own = {*conv._parameters, *conv._buffers, *conv._modules} ^ {'weight', 'bias'}
    hooks = {name for name, value in vars(conv).items() if name.endswith('_hooks') and value}
    methods = {name for name in vars(conv) if callable(getattr(type(conv), name, None))}
    return ', '.join(sorted(own | hooks | methods))


def merging_method(block: nn.Module | None) -> str:
    """The method with which a block merges its branches into one convolution for deployment, or an empty string.

    Such blocks (of RepVGG, MobileOne, RepLKNet, LeViT, YOLOv6) read ``conv.weight`` alone, so offsets would be lost. A
    network whose method only calls its blocks' is none, and neither is a block that is merged already.
    """
    if block is None or not (method := _merging_method(type(block))):  # type: ignore
        return ''
    inner = any(_merging_method(type(module)) for module in block.modules() if module is not block)  # type: ignore
    merged = getattr(block, 'deploy', False) is True or any('reparam' in name for name, _ in block.named_children())
    return '' if inner or merged else f'{type(block).__name__}.{method}'


@cache
def _merging_method(kind: Any) -> str:
    for name in sorted(dir(kind), key=lambda name: 'deploy' not in name):
        if _MERGING.fullmatch(name) and callable(method := getattr(kind, name)):
            needed = [p for p in signature(method).parameters.values() if p.default is Parameter.empty]
            called = method.__code__.co_names if isfunction(method) else ()
            only_calls = name in called and 'super' not in called  # its parts' methods, as mmpose's estimators do
            if len(needed) == 1 and not only_calls:  # self; mmdet's FPG.fuse takes feature maps
                return name
    return ''


def upgraded_layers(model: nn.Module) -> dict[str, ZeroOffsetDCN]:
    """The deformable layers of a network by dotted name, each once."""
    return {unwrapped_name(name): module for name, module in model.named_modules() if isinstance(module, ZeroOffsetDCN)}


def names_in_state_dict(model: nn.Module) -> dict[str, ZeroOffsetDCN]:
    """The deformable layers of a network by each of their names: a shared layer has several, and the state dict all."""
    every = model.named_modules(remove_duplicate=False)
    return {unwrapped_name(name): module for name, module in every if isinstance(module, ZeroOffsetDCN)}


def unwrapped_name(name: str) -> str:
    """A dotted name without what PyTorch's wrappers (FSDP, activation checkpointing) add to it."""
    return re.sub(r'_(?:fsdp|checkpoint)_wrapped_module\.', '', name)
