# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Detectron2's ResNets, Faster and Mask R-CNN with FPN, and RetinaNet; also under their Caffe2 (Detectron) names.

Names and layers: ``detectron2/modeling/{backbone/fpn,meta_arch/retinanet,roi_heads/mask_head,anchor_generator}.py``
and ``detectron2/checkpoint/c2_model_loading.py`` of https://github.com/facebookresearch/detectron2, v0.6.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Dict, List, Mapping, Sequence, Tuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from .base import Check, Format, Imported
from .caffe2 import detectron2_name, is_caffe2
from .checks import anchors, cell_anchors, norm_eps, preprocessing, roi_align, setting, stride_in
from .table import Rule, apply_rules, select_rows
from .torchvision_detection import extra_levels

_BACKBONE = r'(?:backbone\.(?:bottom_up\.)?)?'
_NORM = r'(weight|bias|running_mean|running_var|num_batches_tracked)'
_RATIOS = (0.5, 1.0, 2.0)
_EPS = 1e-5
_EXTRACTORS = ('roi_head.bbox_roi_extractor', 'roi_head.mask_roi_extractor')

_RESNET = (
    Rule(rf'{_BACKBONE}stem\.conv1\.weight', 'backbone.conv1.weight'),
    Rule(rf'{_BACKBONE}stem\.conv1\.norm\.{_NORM}', r'backbone.bn1.\1'),
    Rule(
        rf'{_BACKBONE}res([2-5])\.(\d+)\.conv([123])\.weight',
        lambda m: f'backbone.layer{int(m[1]) - 1}.{m[2]}.conv{m[3]}.weight',
    ),
    Rule(
        rf'{_BACKBONE}res([2-5])\.(\d+)\.conv([123])\.norm\.{_NORM}',
        lambda m: f'backbone.layer{int(m[1]) - 1}.{m[2]}.bn{m[3]}.{m[4]}',
    ),
    Rule(
        rf'{_BACKBONE}res([2-5])\.(\d+)\.shortcut\.weight',
        lambda m: f'backbone.layer{int(m[1]) - 1}.{m[2]}.downsample.0.weight',
    ),
    Rule(
        rf'{_BACKBONE}res([2-5])\.(\d+)\.shortcut\.norm\.{_NORM}',
        lambda m: f'backbone.layer{int(m[1]) - 1}.{m[2]}.downsample.1.{m[3]}',
    ),
    Rule(r'(?:linear|fc|fc1000|pred)\.(?:weight|bias)', None, "the classifier of ImageNet's classes"),
    Rule(r'pixel_(?:mean|std)', None, 'a setting of data_preprocessor (compared with it)'),
    Rule(r'.*anchor_generator\.cell_anchors\.\d', None, "a setting of the head's anchor_generator (compared with it)"),
)
_RCNN = (
    Rule(r'proposal_generator\.rpn_head\.conv\.(.*)', r'rpn_head.rpn_conv.\1'),
    Rule(r'proposal_generator\.rpn_head\.objectness_logits\.(.*)', r'rpn_head.rpn_cls.\1'),
    Rule(r'proposal_generator\.rpn_head\.anchor_deltas\.(.*)', r'rpn_head.rpn_reg.\1'),
    Rule(r'roi_heads\.box_head\.fc([12])\.(.*)', lambda m: f'roi_head.bbox_head.shared_fcs.{int(m[1]) - 1}.{m[2]}'),
    Rule(r'roi_heads\.box_predictor\.cls_score\.(.*)', r'roi_head.bbox_head.fc_cls.\1'),
    Rule(r'roi_heads\.box_predictor\.bbox_pred\.(.*)', r'roi_head.bbox_head.fc_reg.\1'),
    Rule(
        r'roi_heads\.mask_head\.mask_fcn([1-9])\.(weight|bias)',
        lambda m: f'roi_head.mask_head.convs.{int(m[1]) - 1}.conv.{m[2]}',
    ),
    Rule(r'roi_heads\.mask_head\.deconv\.(.*)', r'roi_head.mask_head.upsample.\1'),
    Rule(r'roi_heads\.mask_head\.predictor\.(.*)', r'roi_head.mask_head.conv_logits.\1'),
)


def _fpn(levels: Sequence[int]) -> Tuple[Rule, ...]:
    first, count = min(levels, default=2), len(levels)
    return (
        Rule(
            r'backbone\.fpn_lateral([2-5])\.(weight|bias)',
            lambda m: f'neck.lateral_convs.{int(m[1]) - first}.conv.{m[2]}',
        ),
        Rule(
            r'backbone\.fpn_output([2-5])\.(weight|bias)', lambda m: f'neck.fpn_convs.{int(m[1]) - first}.conv.{m[2]}'
        ),
        Rule(
            r'backbone\.top_block\.p([67])\.(weight|bias)',
            lambda m: f'neck.fpn_convs.{int(m[1]) - 6 + count}.conv.{m[2]}',
        ),
    )


def _ratios_first(tensor: Tensor) -> Tensor:
    """Rows of nine anchors: Detectron2 has all ratios of a size together, mmdet all sizes of a ratio."""
    sizes = tensor.reshape(3, 3, -1, *tensor.shape[1:])  # (sizes, ratios, rows, ...)
    return sizes.transpose(0, 1).reshape(tensor.shape)


_RETINA = (
    Rule(r'head\.cls_subnet\.([0246])\.(weight|bias)', lambda m: f'bbox_head.cls_convs.{int(m[1]) // 2}.conv.{m[2]}'),
    Rule(r'head\.bbox_subnet\.([0246])\.(weight|bias)', lambda m: f'bbox_head.reg_convs.{int(m[1]) // 2}.conv.{m[2]}'),
    Rule(r'head\.cls_score\.(.*)', r'bbox_head.retina_cls.\1', 'anchors sorted by ratio, then size', _ratios_first),
    Rule(r'head\.bbox_pred\.(.*)', r'bbox_head.retina_reg.\1', 'anchors sorted by ratio, then size', _ratios_first),
)


def _is_detectron2(names: Mapping[str, Tensor]) -> bool:
    return any(
        f'{prefix}stem.conv1.weight' in names and f'{prefix}res2.0.conv1.weight' in names
        for prefix in ('', 'backbone.', 'backbone.bottom_up.')
    )


def _convert_detectron2(source: Mapping[str, Tensor]) -> Imported:
    return _convert(DETECTRON2.name, source, [*_style_checks(source), roi_align(True, 0, _EXTRACTORS)])


def _convert_caffe2(source: Mapping[str, Tensor]) -> Imported:
    names: Dict[str, str] = {}
    for name in source:
        names.setdefault(detectron2_name(name), name)
    if len(names) != len(source):
        raise CheckpointError(f'it looks like {CAFFE2.name}, and has two names for one tensor')
    mapped = {theirs: source[name] for theirs, name in names.items()}
    biases = {name for name in mapped if re.fullmatch(rf'{_BACKBONE}(?:stem|res[2-5]\.\d+)\.conv\d\.bias', name)}
    rcnn = any(name.startswith('proposal_generator.') for name in mapped)
    caffe = [] if _grouped_convolutions(mapped) else [stride_in('conv1', 'caffe'), _CAFFE_PIXELS]
    if rcnn:
        caffe.append(roi_align(False, 2, _EXTRACTORS))
    what = 'background moved from the first place'
    rules = (
        Rule(
            r'roi_heads\.box_predictor\.cls_score\.(.*)',
            r'roi_head.bbox_head.fc_cls.\1',
            f'{what} to the last',
            lambda t: torch.cat([t[1:], t[:1]]),
        ),
        Rule(
            r'roi_heads\.box_predictor\.bbox_pred\.(.*)',
            r'roi_head.bbox_head.fc_reg.\1',
            'no boxes of the background',
            lambda t: t[4:],
        ),
        Rule(
            r'roi_heads\.mask_head\.predictor\.(.*)',
            r'roi_head.mask_head.conv_logits.\1',
            'no mask of the background',
            lambda t: select_rows(t, range(1, t.shape[0]), 1),
        ),
    )
    imported = _convert(CAFFE2.name, {name: t for name, t in mapped.items() if name not in biases}, caffe, rules)
    imported = _fold_biases(imported, {name: mapped[name] for name in biases})
    return replace(
        imported,
        renamed={names.get(theirs, theirs): ours for theirs, ours in imported.renamed.items()},
        dropped={names.get(theirs, theirs): why for theirs, why in imported.dropped.items()},
    )


def _convert(
    format_name: str, source: Mapping[str, Tensor], checks: Sequence[Check], first: Sequence[Rule] = ()
) -> Imported:
    levels = [int(m[1]) for m in (re.fullmatch(r'backbone\.fpn_lateral(\d)\.weight', name) for name in source) if m]
    retina = 'head.cls_score.weight' in source
    imported = apply_rules(
        format_name,
        (*first, *_RESNET, *_fpn(levels), *(_RETINA if retina else _RCNN)),
        source,
        checks=(*checks, *_head_checks(source, retina)),
    )
    return _with_statistics(imported)


def _with_statistics(imported: Imported) -> Imported:
    """Norms of scale and shift alone get a mean of 0 and a variance that cancels eps."""
    state_dict, changed = dict(imported.state_dict), dict(imported.changed)
    for name, weight in imported.state_dict.items():
        stem = name.removesuffix('.weight')
        if weight.dim() != 1 or stem == name or not name.startswith('backbone.'):
            continue
        if f'{stem}.bias' not in imported.state_dict or f'{stem}.running_mean' in imported.state_dict:
            continue
        state_dict[f'{stem}.running_mean'] = torch.zeros_like(weight)
        state_dict[f'{stem}.running_var'] = torch.full_like(weight, 1 - _EPS)
        for statistic in ('running_mean', 'running_var'):
            changed[f'{stem}.{statistic}'] = f'0 and 1 - {_EPS:g}: the file has only scale and shift of the norm'
    return replace(imported, state_dict=state_dict, changed=changed, checks=(*imported.checks, norm_eps([_EPS])))


def _fold_biases(imported: Imported, biases: Mapping[str, Tensor]) -> Imported:
    """A convolution's bias before a norm, which the network's convolution lacks, goes into the norm's mean."""
    state_dict, changed, dropped = dict(imported.state_dict), dict(imported.changed), dict(imported.dropped)
    for name, bias in biases.items():
        weight = imported.renamed[name.replace('.bias', '.weight')]
        mean = re.sub(r'conv(\d)\.weight$', r'bn\1.running_mean', weight)
        state_dict[mean] = state_dict[mean] - bias
        changed[mean] = "the convolution's bias taken from the mean"
        dropped[name] = 'taken from the mean of the norm that follows'
    return replace(imported, state_dict=state_dict, changed=changed, dropped=dropped)


_CAFFE_PIXELS = preprocessing([103.53, 116.28, 123.675], [1.0] * 3, False)


def _style_checks(source: Mapping[str, Tensor]) -> List[Check]:
    """What the pixels' statistics in older files tell: those of unit scale belong to MSRA's networks of Caffe."""
    if 'pixel_mean' not in source or 'pixel_std' not in source:
        return []
    mean, std = (source[f'pixel_{name}'].flatten().tolist() for name in ('mean', 'std'))
    checks = [preprocessing(mean, std, mean[0] > mean[-1])]
    if all(abs(value - 1) < 1e-3 for value in std):
        checks.append(stride_in('conv1', 'caffe'))
    return checks


def _grouped_convolutions(source: Mapping[str, Tensor]) -> bool:
    name = next((name for name in source if name.endswith('res2.0.conv2.weight')), None)
    return name is not None and source[name].shape[0] != source[name].shape[1]


def _head_checks(source: Mapping[str, Tensor], retina: bool) -> List[Check]:
    if retina:
        sizes = [[base * 2 ** (octave / 3) for octave in range(3)] for base in (32, 64, 128, 256, 512)]
        p6 = source.get('backbone.top_block.p6.weight', torch.empty(256, 2048))
        return [
            anchors('bbox_head', cell_anchors(sizes, _RATIOS), 0.5),
            *extra_levels('on_output' if p6.shape[0] == p6.shape[1] else 'on_input'),
        ]
    if not any(name.startswith('proposal_generator.') for name in source):
        return []
    sizes = [[base] for base in (32.0, 64.0, 128.0, 256.0, 512.0)]
    return [
        anchors('rpn_head', cell_anchors(sizes, _RATIOS), 0.5),
        setting(
            'roi_head.bbox_head.bbox_coder.stds',
            (0.1, 0.1, 0.2, 0.2),
            'model.roi_head.bbox_head.bbox_coder.target_stds=[0.1, 0.1, 0.2, 0.2]',
        ),
    ]


DETECTRON2 = Format('Detectron2', _is_detectron2, _convert_detectron2)
CAFFE2 = Format('Caffe2 or Detectron', is_caffe2, _convert_caffe2)
