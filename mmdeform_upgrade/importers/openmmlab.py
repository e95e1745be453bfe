# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Checkpoints of the OpenMMLab libraries before mmdet 3 and mmseg 1: most names stayed, some settings moved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import CheckpointError
from .rules import Format, KeyMap, Rule, names_with

_OLD_SSD = KeyMap(
    (
        Rule(r'backbone\.extra\.(\d+)\.(weight|bias)', 'neck.extra_layers.{1/2}.{1%2}.conv.{2}'),
        Rule(r'(?:backbone|neck)\.l2_norm\.weight', 'neck.l2_norm.weight'),
        Rule(r'bbox_head\.(cls|reg)_convs\.(\d)\.(weight|bias)', 'bbox_head.{1}_convs.{2}.0.{3}'),
        Rule(r'((?:backbone\.features|neck)\..*)', '{1}'),
    )
)
_RPN = KeyMap((Rule(r'rpn_head\.(.*)', 'bbox_head.{1}'), Rule(r'((?:backbone|neck)\..*)', '{1}')))


OLD_SSD = Format(
    'MMDetection SSD before 2.14',
    names_with(('backbone.features.0.weight', 'backbone.extra.0.weight', 'bbox_head.cls_convs.0.weight')),
    lambda source: _OLD_SSD,
)
RPN = Format(
    'MMDetection RPN',
    lambda names: 'rpn_head.rpn_conv.weight' in names and not any(re.match('(roi|bbox)_head', name) for name in names),
    lambda source: _RPN,
)


def refuse_version_one(names: Iterable[str], meta: Any) -> None:
    """Raise CheckpointError for what is of MMDetection 0.x or 1.x by its names, or says so itself."""
    version = str(meta.get('mmdet_version', '')) if isinstance(meta, Mapping) else ''
    if re.match(r'[01]\.', version) or any(re.fullmatch(r'bbox_head\.(?:\d\.)?fc_cls\.weight', name) for name in names):
        raise CheckpointError(
            'it comes from MMDetection 1 or older, which had the background as its first class and other anchors, box '
            'coders and RoIAlign: no network of mmdet 3 computes the same with its stock settings. Convert it with '
            'tools/model_converters/upgrade_model_version.py of mmdet and use the settings of configs/legacy_1.x'
        )


def dataset_meta(meta: Any) -> dict[str, Any]:
    """``dataset_meta`` of mmdet 3 and mmseg 1, from whichever version's meta."""
    if not isinstance(meta, Mapping):
        return {}
    if isinstance(meta.get('dataset_meta'), Mapping):
        return dict(meta['dataset_meta'])
    found = {name.lower(): meta[name] for name in ('CLASSES', 'PALETTE') if meta.get(name) is not None}
    if isinstance(found.get('classes'), str):
        found['classes'] = (found['classes'],)
    return found
