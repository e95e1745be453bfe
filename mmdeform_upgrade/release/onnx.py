# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Upgraded networks as ONNX files whose deformable layers are the standard operator ``DeformConv``, no custom domain.

``DeformConv`` (opsets 19 and 22) orders its offsets as this package does: deform group, tap, ``(dy, dx)``.
https://onnx.ai/onnx/operators/onnx__DeformConv.html
"""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..errors import ExportError
from ..files import atomic_write
from ..layers import upgraded_layers
from ..ops.autograd import onnx_attributes
from ..ops.geometry import Geometry
from ..upgrade import revert_

PARTS = ('network', 'backbone')
# The lists of maps, one map a level, that a head's forward returns.
_HEADS = {'SSDHead': ('cls_score', 'bbox_pred'), 'YOLOV3Head': ('pred_map',)}
OPSETS = (19, 22)
INPUT = 'input'


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    size: tuple[int, int],
    part: str = 'network',
    opset: int = 19,
    dynamic_batch: bool = False,
    revert_zero: bool = False,
) -> list[str]:
    """Write a network or its backbone as an ONNX file, checked by ONNX itself.

    The file's input is ``input``, normalised pictures (N, C, H, W) as the data preprocessor makes them; its outputs are
    the raw maps of each level: ``cls_score_i`` and ``bbox_pred_i`` of SSD, ``pred_map_i`` of YOLOv3, ``feature_i`` of a
    backbone. Decoding and non-maximum suppression are not in it. ``model`` is left as it is.

    Args:
        model: a detector of mmdet's, or (``part='backbone'``) anything with a ``backbone``, or a backbone itself.
        path: file to write.
        size: (H, W) of the pictures, fixed in the file.
        part: ``'network'``: backbone, neck and head, up to the head's raw maps; ``'backbone'``: its feature maps.
        opset: 19 or 22.
        dynamic_batch: leave N open; 1 otherwise.
        revert_zero: write layers whose offsets are exactly zero as plain ``Conv``; else they are ``DeformConv``, too.

    Returns:
        Names of the outputs.

    Raises:
        ExportError: a package is missing or too old, the opset has no ``DeformConv`` or was not tried, the network is
            not supported, or what was exported is not what was asked for. Nothing is written then.
    """
    _check_request(size, opset)
    stages, prefixes = _stages(model, part)
    module = _FlatMaps(*copy.deepcopy(stages)).eval().requires_grad_(False)
    if revert_zero and upgraded_layers(module):
        revert_(module)
    device = next((p.device for p in module.parameters()), torch.device('cpu'))
    pictures = torch.zeros(2 if dynamic_batch else 1, _channels(module), *size, device=device)
    with torch.no_grad():
        with _refused(
            f'the network does not run on float32 pictures of {tuple(pictures.shape)}: give a size that it was made for, '
            'and call model.float() where it has another precision'
        ):
            levels = len(module(pictures)) // len(prefixes)
        names = [f'{prefix}_{level}' for prefix in prefixes for level in range(levels)]
        proto = _exported(module, pictures, names, opset, dynamic_batch)
    _check_proto(proto, len(upgraded_layers(module)))
    with atomic_write(str(path)) as temporary:
        Path(temporary).write_bytes(proto.SerializeToString())
    return names


def _channels(module: nn.Module) -> int:
    """Of the pictures, as the first convolution says."""
    first = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    focus = any(type(layer).__name__ == 'Focus' for layer in module.modules())  # YOLOX's, of every other row and column
    return 3 if first is None else first.in_channels // (4 if focus else 1)


def _exported(module: nn.Module, pictures: Tensor, names: list[str], opset: int, dynamic_batch: bool) -> Any:
    with _refused("PyTorch's exporter cannot export it: try a fixed batch size, or part='backbone'"):
        program: Any = torch.onnx.export(
            module,
            (pictures,),
            dynamo=True,
            opset_version=opset,
            verbose=False,
            input_names=[INPUT],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},) if dynamic_batch else None,
            custom_translation_table=translation_table(opset),
        )
    return program.model_proto


class _FlatMaps(nn.Module):
    """Stages in a row, from pictures (N, C, H, W) to a flat tuple of maps."""

    def __init__(self, *stages: nn.Module):
        super().__init__()
        self.stages = nn.Sequential(*stages)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        return tuple(flat_tensors(self.stages(input)))


def flat_tensors(output: Any) -> list[Tensor]:
    """The tensors in what a module returns, in order."""
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]


def translation_table(opset: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """``custom_translation_table`` for ``torch.onnx.export(..., dynamo=True)``: this package's operator alone."""
    import onnxscript

    ops = getattr(onnxscript, f'opset{opset}')

    def deform_conv2d(input, offset, weight, bias=None, mask=None, sizes=(), *_):
        return ops.DeformConv(input, weight, offset, bias, mask, **onnx_attributes(Geometry(*sizes)))

    return {torch.ops.mmdeform_upgrade.deform_conv2d.default: deform_conv2d}


def _stages(model: nn.Module, part: str) -> tuple[list[nn.Module], tuple[str, ...]]:
    """What is exported of a network, and the name of each list of maps that it returns; its map ``i`` is ``NAME_i``."""
    if part == 'backbone':
        return [getattr(model, 'backbone', model)], ('feature',)
    if part != 'network':
        raise ExportError(f'part {part!r} is unknown; expected one of {", ".join(PARTS)}')
    parts: list[Any] = [getattr(model, name, None) for name in ('backbone', 'neck', 'bbox_head')]
    known = [_HEADS[kind.__name__] for kind in type(parts[-1]).__mro__ if kind.__name__ in _HEADS]
    if not known or parts[0] is None:
        raise ExportError(
            f'{type(model).__name__} cannot be exported as a whole: expected a one-stage detector with one of '
            f"{', '.join(_HEADS)}. Export its backbone (part='backbone', --part backbone)"
        )
    return [stage for stage in parts if stage is not None], known[0]


def _check_request(size: Sequence[int], opset: int) -> None:
    if opset not in OPSETS:
        raise ExportError(f'opset {opset}: expected one of {OPSETS}, which define DeformConv')
    if len(size) != 2 or min(size) < 1:
        raise ExportError(f'size is {tuple(size)}; expected height and width in pixels')
    if missing := [name for name in ('onnx', 'onnxscript') if find_spec(name) is None]:
        raise ExportError(f'exporting needs {" and ".join(missing)}: pip install "mmdeform_upgrade[onnx]"')
    if 'custom_translation_table' not in inspect.signature(torch.onnx.export).parameters:
        raise ExportError(
            f'torch {torch.__version__} cannot export DeformConv. Install torch >= 2.6 to export; the checkpoint may '
            'come from any version'
        )


def _check_proto(proto: Any, layers: int) -> None:
    import onnx

    with _refused('ONNX does not accept what was exported, so nothing was written'):
        onnx.checker.check_model(proto, full_check=True)
    if foreign := sorted({entry.domain for entry in proto.opset_import} - {'', 'ai.onnx'}):
        raise ExportError(
            f'the file would need operators of {", ".join(foreign)}; expected standard ONNX alone: '
            "export the backbone (part='backbone')"
        )
    nodes = sum(node.op_type == 'DeformConv' for node in proto.graph.node)
    if nodes < layers:
        raise ExportError(
            f'{layers} deformable layers became {nodes} DeformConv nodes: a layer is not used in the forward pass'
        )


@contextmanager
def _refused(why: str) -> Iterator[None]:
    """Errors of PyTorch and ONNX become an ExportError with the cause; their remarks say nothing to a user."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)  # it remarks on packages that a network does not need
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        details = str(cause).splitlines() or ['']
        raise ExportError(f'{why}. It says: {type(cause).__name__}: {details[0]}') from error
    finally:
        logger.setLevel(level)
