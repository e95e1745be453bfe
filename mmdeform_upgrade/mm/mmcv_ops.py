# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What detectors call of mmcv's compiled operators, where mmcv was installed without them.

``mmcv._ext`` takes a compiler and 15 minutes, and no wheel of it exists for recent releases of PyTorch. Where it is
missing, this module stands in for it: torchvision's operators where torchvision loads, plain PyTorch else, with the
results of the compiled ones. Every other operator can be imported and says when it is called what it needs. A compiled
mmcv is never replaced.

Shapes: N boxes or images; R regions; C, H, W of a feature map; P, Q = bins of a region (height, width).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OperatorError

_BLOCK = 64  # boxes that nms decides on at once


@cache
def _torchvision() -> Any:
    """torchvision's operators, or None where they do not load (not installed, or built for another PyTorch)."""
    try:
        import torchvision  # noqa: F401  registers them

        return torch.ops.torchvision if hasattr(torch.ops.torchvision, 'nms') else None
    except (ImportError, OSError, RuntimeError):
        return None


def get_compiler_version() -> str:
    return 'none, operators by ' + ('torchvision' if _torchvision() else 'PyTorch')


def get_compiling_cuda_version() -> str:
    return 'not available'


def _iou(first: Tensor, second: Tensor, offset: int) -> Tensor:
    """(n, 4), (m, 4) -> (n, m), in the compiled operator's order of operations, so that ties fall the same way."""
    sides = []
    for low, high in ((0, 2), (1, 3)):
        inner = torch.minimum(first[:, None, high], second[:, high])
        sides.append(inner.sub_(torch.maximum(first[:, None, low], second[:, low])).add_(offset).clamp_(min=0))
    areas = [(b[:, 2] - b[:, 0] + offset) * (b[:, 3] - b[:, 1] + offset) for b in (first, second)]
    inner = sides[0].mul_(sides[1])
    return inner / (areas[0][:, None] + areas[1]).sub_(inner)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes kept, (K,), by falling score."""
    if offset == 0 and _torchvision():
        # the compiled operator compares with the threshold in single precision
        return _torchvision().nms(boxes, scores, torch.tensor(iou_threshold, dtype=torch.float32).item())
    order = scores.sort(0, descending=True).indices
    boxes, kept = boxes[order], [order[:0]]
    while len(order):
        over = _iou(boxes[:_BLOCK], boxes, offset) > iou_threshold
        keep = _first_come(over[:, :_BLOCK])
        kept.append(order[:_BLOCK][keep])
        rest = ~over[keep, _BLOCK:].any(0)
        order, boxes = order[_BLOCK:][rest], boxes[_BLOCK:][rest]
    return torch.cat(kept)


def _first_come(over: Tensor) -> Tensor:
    """Who stays if each, in order, drops those after it that it overlaps: the fixed point of 'no earlier one stays'."""
    over = over.triu(1).float()
    keep = over.new_ones(len(over))
    while True:
        previous, keep = keep, (keep @ over == 0).float()
        if torch.equal(previous, keep):
            return keep.bool()


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Indices of the boxes kept, (K,); fills the first K rows of ``dets`` (N, 5) with boxes and lowered scores."""
    boxes, scores, indices = boxes.clone(), scores.clone(), torch.arange(len(boxes))
    state, done, count = (boxes, scores, indices), 0, len(boxes)
    while done < count:
        best = done if scores[done].isnan() else done + int(scores[done:count].nan_to_num(-1.0).argmax())
        for part in state:
            part[[done, best]] = part[[best, done]]
        done += 1
        iou = _iou(boxes[done - 1 : done], boxes[done:count], offset)[0]
        if method == 2:
            weight = torch.exp(-(iou * iou) / sigma)
        else:
            weight = torch.where(iou >= iou_threshold, (1 - iou) if method == 1 else 0.0, 1.0)
        scores[done:count] *= weight
        alive = ~(scores[done:count] < min_score)
        # those dropped are replaced by the last ones alive, as in the compiled operator: it decides among equal scores
        count = done + int(alive.sum())
        holes = (~alive[: count - done]).nonzero()[:, 0] + done
        fillers = alive[count - done :].nonzero()[:, 0].flip(0) + count
        for part in state:
            part[holes] = part[fillers]
    dets[:count, :4], dets[:count, 4] = boxes[:count], scores[:count]
    return indices[:count]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """(N, 5) -> for each box kept: its index and those of the boxes that it suppresses."""
    order, groups = dets[:, 4].sort(0, descending=True).indices, []
    while len(order):
        over = _iou(dets[order[:1], :4], dets[order, :4], 0)[0] >= iou_threshold
        over[0] = True
        groups.append(order[over].tolist())
        order = order[~over]
    return groups


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, **settings: Any
) -> None:
    """Fill ``output`` (R, C, P, Q), and for maxima ``argmax_y`` with what the backward pass needs."""
    maps, rois, average = _wide(input), _wide(rois), settings['pool_mode'] == 1
    with torch.autocast(input.device.type, enabled=False):
        if average and _torchvision():
            output.copy_(_torchvision().roi_align(maps, rois.to(maps), *_options(settings)))
            return
        maps = maps.permute(0, 2, 3, 1).contiguous()
        for region, (window, rows, columns) in enumerate(_regions(rois, maps.shape, settings)):
            values = (rows @ (columns @ maps[window]).flatten(1)).unflatten(1, (len(columns), -1)).permute(2, 0, 1)
            if not average:
                grid = len(rows) // output.shape[2], len(columns) // output.shape[3]
                values, argmax_y[region] = F.max_pool2d(values, grid, return_indices=True)
            output[region] = values


def roi_align_backward(
    grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, **settings: Any
) -> None:
    """Fill ``grad_input`` (N, C, H, W)."""
    grads, rois, average = _wide(grad_output), _wide(rois), settings['pool_mode'] == 1
    with torch.autocast(grads.device.type, enabled=False):
        if average and _torchvision():
            options = _options(settings, *grad_input.shape)
            grad_input.copy_(_torchvision()._roi_align_backward(grads, rois.to(grads), *options))
            return
        maps = grads.new_zeros(grad_input.permute(0, 2, 3, 1).shape)
        for region, (window, rows, columns) in enumerate(_regions(rois, maps.shape, settings)):
            grad, size = grads[region], (len(rows), len(columns))
            if not average:
                grid = size[0] // grad.shape[1], size[1] // grad.shape[2]
                grad = F.max_unpool2d(grad, argmax_y[region].long(), grid, output_size=size)
            grad = grad.permute(1, 2, 0)
            maps[window] += columns.T @ (rows.T @ grad.flatten(1)).unflatten(1, grad.shape[1:])
        grad_input.copy_(maps.permute(0, 3, 1, 2))


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _options(settings: dict[str, Any], *shape: int) -> tuple[Any, ...]:
    """torchvision's arguments after maps and regions."""
    first = (settings[key] for key in ('spatial_scale', 'aligned_height', 'aligned_width'))
    return *first, *shape, settings['sampling_ratio'], settings['aligned']


def _regions(rois: Tensor, shape: torch.Size, settings: dict[str, Any]) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """For each region its window of the maps (N, H, W, C), and the matrices that interpolate in it: (P, h) and (Q, w).

    Bilinear interpolation and the mean over a bin's grid are separable. For maxima there is a row for every sample.
    """
    average, aligned = settings['pool_mode'] == 1, settings['aligned']
    if not average and len(rois) > 1:  # each has a number of samples of its own
        for roi in rois:
            yield from _regions(roi[None], shape, settings)
        return
    corners = rois[:, 1:] * settings['spatial_scale'] - (0.5 if aligned else 0.0)
    extents = (corners[:, 2:] - corners[:, :2]).clamp(min=0.0 if aligned else 1.0)
    rows, columns = (
        _interpolation(corners[:, axis], extents[:, axis], settings[bins], length, settings['sampling_ratio'], average)
        for axis, bins, length in ((1, 'aligned_height', shape[1]), (0, 'aligned_width', shape[2]))
    )
    limits = torch.stack([rois[:, 0].long(), *rows[1:], *columns[1:]], 1).tolist()
    for index, (image, y0, y1, x0, x1) in enumerate(limits):
        yield (image, slice(y0, y1), slice(x0, x1)), rows[0][index, :, y0:y1], columns[0][index, :, x0:x1]


def _interpolation(
    start: Tensor, extent: Tensor, bins: int, length: int, ratio: int, average: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One axis: matrices (R, bins, length), or (R, bins * grid, length) of all samples, and the range that they use."""
    if not len(start):
        return start.new_zeros(0, bins, length), start.long(), start.long()
    start, size = start[:, None, None], (extent / bins)[:, None, None]
    grid = torch.full_like(size, ratio) if ratio > 0 else size.ceil()
    sample = torch.arange(max(int(grid.max()), 1), device=start.device, dtype=start.dtype)
    inside = torch.minimum(sample, (grid - 1).clamp(min=0))  # (R, 1, G); what is beyond a region's grid has no weight
    place = torch.arange(bins, device=start.device, dtype=start.dtype)[:, None]
    at = start + place * size + (inside + 0.5) * size / grid.clamp(min=1)  # (R, bins, G)
    weight = ((sample < grid) & (at >= -1) & (at <= length)).to(start.dtype)
    if average:
        weight = weight / grid.clamp(min=1)
    at = at.clamp(0, length - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=length - 1)
    cells, part = torch.stack([low, high], -1), torch.stack([weight * (1 - (at - low)), weight * (at - low)], -1)
    keep = 2 if average else 3
    cells, part = cells.flatten(keep), part.flatten(keep)  # (R, bins, 2G), or (R, bins, G, 2)
    matrix = start.new_zeros(*cells.shape[:-1], length).scatter_add_(-1, cells, part)
    return matrix.flatten(1, -2), cells.flatten(1).amin(1), cells.flatten(1).amax(1) + 1


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``output`` (N, C); ``target`` (N,) holds classes, C for background."""
    x, _, scale = _focal(input, target, weight, alpha)
    output.copy_(-scale * (-x).sigmoid() ** gamma * F.logsigmoid(x))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``grad_input`` (N, C) with the derivative of the loss."""
    x, own, scale = _focal(input, target, weight, alpha)
    rest = (-x).sigmoid()
    grad = -scale * rest**gamma * (rest - gamma * x.sigmoid() * F.logsigmoid(x))
    grad_input.copy_(torch.where(own, grad, -grad))


def _focal(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    own = target[:, None] == torch.arange(input.shape[1], device=input.device)
    logits = _wide(input)
    scale = torch.where(own, alpha, 1 - alpha).to(logits)
    # the loss of another class is that of the class itself, mirrored
    return torch.where(own, logits, -logits), own, scale * weight[target, None] if weight.numel() else scale


def __getattr__(name: str) -> Callable[..., Any]:
    """Any other operator of ``mmcv._ext``."""
    if name.startswith('__'):
        raise AttributeError(name)

    def operator(*args: Any, **kwargs: Any) -> Any:
        raise OperatorError(
            f"mmcv's operator {name} needs mmcv's compiled part, which is not installed here: "
            'Without it work nms, soft_nms, nms_match, roi_align and sigmoid_focal_loss. docs/troubleshooting.md, "mmcv without '
            'a compiler", has the way to a compiled mmcv'
        )

    operator.__name__ = name
    return operator


def stand_in() -> None:
    """Have this module imported as ``mmcv._ext`` where mmcv has none; mmcv itself is not imported."""
    mmcv = find_spec('mmcv')
    if mmcv is not None and PathFinder.find_spec('mmcv._ext', mmcv.submodule_search_locations) is None:
        sys.modules.setdefault('mmcv._ext', sys.modules[__name__])
