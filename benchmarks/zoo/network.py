# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Parts of a network: finding them, running them on a picture, and comparing what comes out."""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence
from unittest import mock

import torch
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmdeform_upgrade import layers
from mmdeform_upgrade.errors import UpgradeError
from mmdeform_upgrade.layers import ZeroOffsetDCN
from mmdeform_upgrade.ops import deform_conv2d
from mmdeform_upgrade.targets import Targets, find_targets, is_convolution, predicts_offsets, upgradable_names

from .configs import BACKBONES, NECKS, component, parts_called
from .weights import Draws, calibrating, has_batch_norms, randomize

if TYPE_CHECKING:
    from mmengine.config import Config

SIZES = (64, 128, 256)  # side of the input in pixels; pyramids with many levels need the larger ones
OFFSET = 0.5  # pixels; far enough to change any output that an upgraded layer takes part in


@dataclass(frozen=True)
class Run:
    """A backbone of the original network, and all that it and its neck make of a picture.

    Attributes:
        place: name of the backbone in the network.
        x: (1, C, H, W).
        outs: every output.
        without_neck: why the neck could not be run, if it could not.
    """

    place: str
    x: Tensor
    outs: List[Tensor]
    without_neck: Optional[str] = None

    def again(self, model: nn.Module) -> List[Tensor]:
        """The outputs of another network."""
        dtype = next(model.parameters()).dtype
        return features(model, self.place, self.x.to(dtype), self.without_neck is None)


class RunError(Exception):
    """The original network, as its framework builds it, does not run on a plain picture."""


def build_parts(cfg: Config) -> nn.Module:
    """The backbones and necks of a config's model that can be built, under their names, and nothing else of it.

    Raises:
        Exception: whatever the framework raises, if there is no backbone among them.
    """
    init_default_scope(cfg.default_scope)
    root = nn.Module()
    problem: Optional[Exception] = None
    for part in parts_called(cfg.model, (*BACKBONES, *NECKS)):
        try:
            module = MODELS.build(copy.deepcopy(component(cfg.model, part)))
        except Exception as error:
            problem = error
            continue
        holder = root
        *owners, last = part.split('.')
        for name in owners:
            if name not in holder._modules:
                holder.add_module(name, nn.Module())
            holder = holder.get_submodule(name)
        holder.add_module(last, module)
    if problem and not any(name.rpartition('.')[2] in BACKBONES for name, _ in root.named_modules()):
        raise problem
    return root


def places(model: nn.Module, part: str) -> List[str]:
    """Names of the modules that a part of the config became; several where a wrapper builds its detector twice."""
    modules = dict(model.named_modules())
    if part in modules:
        return [part]
    last = part.rpartition('.')[2]
    return [name for name in modules if name.rpartition('.')[2] == last and not name.startswith('data_preprocessor')]


def conv_classes(module: nn.Module) -> Dict[str, int]:
    """How many convolutions of which class a module has."""
    return dict(Counter(type(child).__name__ for child in module.modules() if is_convolution(child)).most_common())


def spatial_classes(module: nn.Module) -> Dict[str, int]:
    """As :func:`conv_classes`, only those that could be targets: larger than 1x1, trained, no offset predictors."""
    modules = dict(module.named_modules())
    return dict(
        Counter(
            type(child).__name__
            for name, child in modules.items()
            if is_convolution(child)
            and max(getattr(child, 'kernel_size', (1,)), default=1) > 1
            and not predicts_offsets(name, modules)
            and _trains(child)
        ).most_common()
    )


def _trains(module: nn.Module) -> bool:
    return all(parameter.requires_grad for parameter in module.parameters(recurse=False))


def trainable_convs(module: nn.Module) -> List[str]:
    """Names of the convolutions that ``last:N`` may select and that are not frozen."""
    modules = dict(module.named_modules())
    modules.pop('', None)
    return [name for name in upgradable_names(modules) if modules[name].weight.requires_grad]  # type: ignore


def targets_for(module: nn.Module, names: List[str]) -> Targets:
    """``last:N`` where that selects ``names``, which it does unless frozen convolutions come after them."""
    last = f'last:{len(names)}'
    return last if find_targets(module, last) == names else names


def features(model: nn.Module, place: str, x: Tensor, with_neck: bool = True) -> List[Tensor]:
    """All outputs of the backbone at ``place`` and of the neck beside it."""
    outs = model.get_submodule(place)(x)
    tensors = flatten(outs)
    neck = getattr(model.get_submodule(place.rpartition('.')[0]), 'neck', None)
    if isinstance(neck, nn.Module) and with_neck:
        tensors += flatten(neck(outs))
    return tensors


def flatten(outs: Any) -> List[Tensor]:
    """The tensors of nested tuples, lists and dicts, in order."""
    if isinstance(outs, Tensor):
        return [outs]
    if isinstance(outs, Mapping):
        outs = list(outs.values())
    if isinstance(outs, Sequence) and not isinstance(outs, str):
        return [tensor for out in outs for tensor in flatten(out)]
    return []


def prepare(model: nn.Module, place: str, size: int = 512, channels: int = 3, seed: int = 0) -> Run:
    """Give the backbone at ``place`` and its neck weights and statistics, and run them.

    Args:
        model: the whole network, on the CPU.
        place: name of the backbone in it.
        size: side of the last picture to try, in pixels.
        channels: of the picture.
        seed: of weights and picture.

    Raises:
        RunError: no size of picture works, or the outputs would make any comparison an empty one.
    """
    torch.manual_seed(seed)
    fill = Draws(seed)
    owner = model.get_submodule(place.rpartition('.')[0])
    parts = nn.ModuleList(
        part for part in (model.get_submodule(place), getattr(owner, 'neck', None)) if isinstance(part, nn.Module)
    )
    for part in parts:
        randomize(part, fill)
    problems: List[str] = []
    for with_neck in (True, False):
        for side in (*SIZES, size):
            # Two of the smallest, or the statistics of a single pixel would have no variance.
            x = torch.randn(2 if side == SIZES[0] else 1, channels, side, side)
            try:
                if has_batch_norms(parts):
                    with calibrating(parts):
                        features(model, place, x, with_neck)
                outs = features(model, place, x[:1], with_neck)
            except Exception as error:  # whatever a framework's module says of a size that it does not take
                problems.append(f'{type(error).__name__}: {error}')
                continue
            problem = degenerate(outs)
            if problem:
                raise RunError(problem)
            return Run(place, x[:1], outs, None if with_neck else problems[-1])
    raise RunError(problems[-1])


def degenerate(outs: Sequence[Tensor]) -> Optional[str]:
    """What is wrong with outputs that would make any comparison of them an empty one."""
    if not outs:
        return 'there are no output tensors'
    for index, out in enumerate(outs):
        if not bool(out.isfinite().all()):
            return f'output {index} of {len(outs)} is not finite'
        if out.is_floating_point() and float(out.max() - out.min()) <= 1e-4 * float(out.abs().max()):
            return f'output {index} of {len(outs)} is constant'
    return None


def difference(outs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference over all tensors, each relative to the largest value of what was expected there."""
    if [out.shape for out in outs] != [out.shape for out in expected]:
        raise UpgradeError(
            f'the outputs have the shapes {[tuple(out.shape) for out in outs]}, expected '
            f'{[tuple(out.shape) for out in expected]}'
        )
    return max(float((out - want).abs().max() / want.abs().max()) for out, want in zip(outs, expected, strict=True))


@contextmanager
def deformable_path() -> Iterator[None]:
    """``ZeroOffsetDCN`` samples its input even where every offset is zero, which 'auto' spares a CPU."""

    def sampled(*args: Any, **kwargs: Any) -> Tensor:
        return deform_conv2d(*args, **kwargs, backend='eager')

    with mock.patch.object(layers, 'deform_conv2d', sampled):
        yield


@contextmanager
def offsets_moved(model: nn.Module) -> Iterator[None]:
    """Every tap of the upgraded layers off its place, by ``OFFSET``."""
    biases = [m.conv_offset.bias for m in model.modules() if isinstance(m, ZeroOffsetDCN)]
    for bias in biases:
        bias.data.fill_(OFFSET)
    try:
        yield
    finally:
        for bias in biases:
            bias.data.zero_()


@contextmanager
def counting_runs(model: nn.Module) -> Iterator[List[str]]:
    """Names of the upgraded layers that ran, each once."""
    ran: List[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name) if name not in ran else None)
        for name, module in model.named_modules()
        if isinstance(module, ZeroOffsetDCN)
    ]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()
