# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What is exported of a network: a module that returns a flat tuple of maps, and their names."""

from __future__ import annotations

from typing import Any, List, NamedTuple, Sequence, Tuple

from torch import Tensor, nn

from ..errors import ExportError

PARTS = ('network', 'backbone')
# The lists of maps, one map a level, that a head's forward returns.
_HEADS = {'SSDHead': ('cls_score', 'bbox_pred'), 'YOLOV3Head': ('pred_map',)}


class Exportable(NamedTuple):
    """A module from pictures (N, 3, H, W) to a flat tuple of maps.

    Attributes:
        module: what to run.
        prefixes: name of each list of maps that it returns; map ``i`` of it is called ``PREFIX_i``.
    """

    module: nn.Module
    prefixes: Tuple[str, ...]

    def names(self, maps: Sequence[Tensor]) -> List[str]:
        """A name for each map: as many levels as the prefixes share evenly."""
        levels = len(maps) // len(self.prefixes)
        return [f'{prefix}_{level}' for prefix in self.prefixes for level in range(levels)]


class _Backbone(nn.Module):
    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, input: Tensor) -> Tuple[Tensor, ...]:
        return _flat(self.backbone(input))


class _Detector(nn.Module):
    def __init__(self, detector: Any):
        super().__init__()
        self.backbone = detector.backbone
        self.neck = detector.neck if getattr(detector, 'neck', None) is not None else nn.Identity()
        self.bbox_head = detector.bbox_head

    def forward(self, input: Tensor) -> Tuple[Tensor, ...]:
        return _flat(self.bbox_head(self.neck(self.backbone(input))))


def part_of(model: nn.Module, part: str = 'network') -> Exportable:
    """The part of a network to export.

    Args:
        model: a detector of mmdet's, or (``part='backbone'``) anything with a ``backbone``, or a backbone itself.
        part: ``'network'``: backbone, neck and head, up to the head's raw maps; ``'backbone'``: its feature maps.

    Raises:
        ExportError: the part is unknown, or the network is none of those whose raw maps are known.
    """
    if part == 'backbone':
        return Exportable(_Backbone(getattr(model, 'backbone', model)), ('feature',))
    if part != 'network':
        raise ExportError(f'part {part!r} is unknown; expected one of {", ".join(PARTS)}')
    head: Any = getattr(model, 'bbox_head', None)
    known = [_HEADS[cls.__name__] for cls in type(head).__mro__ if cls.__name__ in _HEADS]
    if not known or not hasattr(model, 'backbone'):
        found = f' with {type(head).__name__}' if head is not None else ''
        raise ExportError(
            f'{type(model).__name__}{found} cannot be exported as a whole: expected a one-stage detector '
            f"with one of {', '.join(_HEADS)}. Export its backbone (part='backbone', --part backbone)"
        )
    return Exportable(_Detector(model), known[0])


def _flat(maps: Any) -> Tuple[Tensor, ...]:
    if isinstance(maps, Tensor):
        return (maps,)
    return tuple(tensor for part in maps for tensor in _flat(part))
