# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Which format a state dict is of, by its names and shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from . import detectron2, gluoncv, openmmlab, torchvision
from .rules import Format, Imported

# One line a format; the order does not matter, since a state dict may be of one format alone.
FORMATS = (
    torchvision.RESNET,
    torchvision.DEEPLAB,
    torchvision.SSD,
    torchvision.RCNN,
    torchvision.RETINANET,
    detectron2.DETECTRON2,
    detectron2.CAFFE2,
    openmmlab.OLD_SSD,
    openmmlab.RPN,
    gluoncv.SSD,
    gluoncv.YOLO,
)
OWN_NAMES = "the network's own names"
VERSION_TWO = 'MMDetection 2 or MMSegmentation 0'


def import_state_dict(source: Mapping[str, Tensor], meta: Any = None, network: Iterable[str] | None = None) -> Imported:
    """A state dict under mmdet's or mmseg's names.

    Args:
        source: names to tensors of a file.
        meta: the ``meta`` beside it, where there is one.
        network: names of the network that it is meant for. A state dict that has no other names passes as it is.

    Raises:
        CheckpointError: two formats claim it, or the one that does cannot convert it.
    """
    fits = network is not None and source.keys() <= set(network)
    openmmlab.refuse_version_one(() if fits else source, meta)
    formats = [] if fits else matching_formats(source)
    if not formats:
        older = isinstance(meta, Mapping) and 'CLASSES' in meta and 'dataset_meta' not in meta
        classes = openmmlab.dataset_meta(meta).get('classes')
        known = tuple(map(str, classes)) if isinstance(classes, (list, tuple)) else ()
        return Imported(VERSION_TWO if older else OWN_NAMES, dict(source), {key: key for key in source}, classes=known)
    if len(formats) > 1:
        names = ' and of '.join(found.name for found in formats)
        raise CheckpointError(f'its names are those of {names}: give a checkpoint of one network')
    return formats[0].convert(source)


def matching_formats(source: Mapping[str, Tensor]) -> list[Format]:
    """The formats whose names and shapes these are."""
    return [known for known in FORMATS if known.recognise(source)]
