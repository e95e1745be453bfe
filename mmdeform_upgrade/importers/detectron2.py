# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Detectron2's ResNets, Faster and Mask R-CNN with FPN, and RetinaNet; also under their Caffe2 (Detectron) names.

Names and layers: ``detectron2/modeling/{backbone/fpn,meta_arch/retinanet,roi_heads/mask_head,anchor_generator}.py``
and ``detectron2/checkpoint/c2_model_loading.py`` of https://github.com/facebookresearch/detectron2, v0.6.
"""

from __future__ import annotations

import torch

from . import checks
from .rules import FOLD, Format, Imported, KeyMap, Rule, Source, names_with

_PREFIXES = ('', 'backbone.', 'backbone.bottom_up.')
_BACKBONE = r'(?:backbone\.(?:bottom_up\.)?)?'
_EPS = 1e-5
_UNCHECKED = (
    "data_preprocessor's mean, std and bgr_to_rgb, and backbone.style, with INPUT.FORMAT, MODEL.PIXEL_MEAN, "
    "MODEL.PIXEL_STD and RESNETS.STRIDE_IN_1X1 of its config (by default BGR, [103.53, 116.28, 123.675], 1, style='caffe')"
)

_RESNET = (
    Rule(rf'{_BACKBONE}stem\.conv1\.weight', 'backbone.conv1.weight'),
    Rule(rf'{_BACKBONE}stem\.conv1\.norm\.(\w+)', 'backbone.bn1.{1}'),
    Rule(rf'{_BACKBONE}res([2-5])\.(\d+)\.conv([123])\.weight', 'backbone.layer{1-1}.{2}.conv{3}.weight'),
    Rule(rf'{_BACKBONE}res([2-5])\.(\d+)\.conv([123])\.norm\.(\w+)', 'backbone.layer{1-1}.{2}.bn{3}.{4}'),
    Rule(rf'{_BACKBONE}res([2-5])\.(\d+)\.shortcut\.weight', 'backbone.layer{1-1}.{2}.downsample.0.weight'),
    Rule(rf'{_BACKBONE}res([2-5])\.(\d+)\.shortcut\.norm\.(\w+)', 'backbone.layer{1-1}.{2}.downsample.1.{3}'),
    Rule(r'(?:stem\.)?(?:linear|fc|fc1000|pred)\.(?:weight|bias)', None, "the classifier of ImageNet's classes"),
    Rule(r'pixel_(?:mean|std)', None, 'a setting of data_preprocessor (compared with it)'),
    Rule(r'.*anchor_generator\.cell_anchors\.\d', None, "a setting of the head's anchor_generator (compared with it)"),
)
_RCNN = (
    Rule(r'proposal_generator\.rpn_head\.conv\.(.*)', 'rpn_head.rpn_conv.{1}'),
    Rule(r'proposal_generator\.rpn_head\.objectness_logits\.(.*)', 'rpn_head.rpn_cls.{1}'),
    Rule(r'proposal_generator\.rpn_head\.anchor_deltas\.(.*)', 'rpn_head.rpn_reg.{1}'),
    Rule(r'roi_heads\.box_head\.fc([12])\.(.*)', 'roi_head.bbox_head.shared_fcs.{1-1}.{2}'),
    Rule(r'roi_heads\.box_predictor\.cls_score\.(.*)', 'roi_head.bbox_head.fc_cls.{1}'),
    Rule(r'roi_heads\.box_predictor\.bbox_pred\.(.*)', 'roi_head.bbox_head.fc_reg.{1}'),
    Rule(r'roi_heads\.mask_head\.mask_fcn([1-9])\.(weight|bias)', 'roi_head.mask_head.convs.{1-1}.conv.{2}'),
    Rule(r'roi_heads\.mask_head\.deconv\.(.*)', 'roi_head.mask_head.upsample.{1}'),
    Rule(r'roi_heads\.mask_head\.predictor\.(.*)', 'roi_head.mask_head.conv_logits.{1}'),
)


# Rows of nine anchors: Detectron2 has all ratios of a size together, mmdet all sizes of a ratio.
_SORTED = (
    'anchors sorted by ratio, then size',
    lambda t: t.reshape(3, 3, -1, *t.shape[1:]).transpose(0, 1).reshape(t.shape),
)
_RETINA = (
    Rule(r'head\.cls_subnet\.([0246])\.(weight|bias)', 'bbox_head.cls_convs.{1/2}.conv.{2}'),
    Rule(r'head\.bbox_subnet\.([0246])\.(weight|bias)', 'bbox_head.reg_convs.{1/2}.conv.{2}'),
    Rule(r'head\.cls_score\.(.*)', 'bbox_head.retina_cls.{1}', *_SORTED),
    Rule(r'head\.bbox_pred\.(.*)', 'bbox_head.retina_reg.{1}', *_SORTED),
)


def _fpn(source: Source) -> tuple[Rule, ...]:
    levels = [level for level in range(2, 6) if f'backbone.fpn_lateral{level}.weight' in source]
    first, above = min(levels, default=2), 6 - len(levels)
    return (
        Rule(r'backbone\.fpn_lateral([2-5])\.(weight|bias)', f'neck.lateral_convs.{{1-{first}}}.conv.{{2}}'),
        Rule(r'backbone\.fpn_output([2-5])\.(weight|bias)', f'neck.fpn_convs.{{1-{first}}}.conv.{{2}}'),
        Rule(r'backbone\.top_block\.p([67])\.(weight|bias)', f'neck.fpn_convs.{{1-{above}}}.conv.{{2}}'),
    )


def _detectron2(source: Source) -> KeyMap:
    rules = (*_RESNET, *_fpn(source), *(_RETINA if 'head.cls_score.weight' in source else _RCNN))
    needed = {**checks.roi_align(aligned=True, sampling_ratio=0), **_of_heads(source)}
    known = {'pixel_mean', 'pixel_std'} <= source.keys()  # in older files; of unit scale are MSRA's networks of Caffe
    if known:
        mean, std = (source[f'pixel_{name}'].flatten().tolist() for name in ('mean', 'std'))
        needed |= checks.preprocessing(mean, std, mean[0] > mean[-1])
        if all(abs(value - 1) < 1e-3 for value in std):
            needed['backbone.style'] = 'caffe'
    return KeyMap(rules, needed, complete=_add_statistics, unchecked='' if known else _UNCHECKED)


def _of_heads(source: Source) -> checks.Needed:
    needed: checks.Needed = {'backbone.norm_cfg.eps': {_EPS}}
    if 'head.cls_score.weight' in source:
        sizes = [[base * 2 ** (octave / 3) for octave in range(3)] for base in (32, 64, 128, 256, 512)]
        needed |= {'bbox_head.anchor_generator': checks.cell_anchors(sizes, 0.5)}
        needed |= checks.extra_levels(source.get('backbone.top_block.p6.weight'))
    elif 'proposal_generator.rpn_head.conv.weight' in source:
        needed |= checks.rpn_anchors(0.5) | checks.box_stds('roi_head.bbox_head')
    return needed


def _add_statistics(imported: Imported) -> None:
    """Norms of scale and shift alone get a mean of 0 and a variance that cancels eps."""
    for name, weight in list(imported.state_dict.items()):
        stem = name.removesuffix('.weight')
        if stem == name or weight.dim() != 1 or not name.startswith('backbone.'):
            continue
        for statistic, value in (('running_mean', 0.0), ('running_var', 1 - _EPS)):
            if f'{stem}.{statistic}' not in imported.state_dict:
                imported.state_dict[f'{stem}.{statistic}'] = torch.full_like(weight, value)
                imported.changed[f'{stem}.{statistic}'] = (
                    f'0 and 1 - {_EPS:g}: the file has only scale and shift of the norm'
                )


# ---- Caffe2: ``res2_0_branch2a_w`` is the weight of the first convolution in the first block of the second stage,
# ``_bn_s`` and ``_bn_b`` scale and shift of the norm behind it. FPN's blobs carry the stage that they take from; the
# topmost lateral has no "_lateral" in its name.
_SPELLINGS = (
    (r'_bn_(?:s|gamma)$', '.norm.weight'),
    (r'_bn_(?:b|beta)$', '.norm.bias'),
    (r'_bn_(?:rm|running_mean)$', '.norm.running_mean'),
    (r'_bn_(?:riv|running_var)$', '.norm.running_var'),
    (r'_w$', '.weight'),
    (r'_b$', '.bias'),
    (r'^(?:res_)?conv1\.', 'stem.conv1.'),
    (r'^res([2-5])_(\d+)_branch1\.', r'res\1.\2.shortcut.'),
    (r'^res([2-5])_(\d+)_branch2([abc])\.', lambda m: f'res{m[1]}.{m[2]}.conv{"abc".index(m[3]) + 1}.'),
    (r'^fpn_inner_res(\d)_\d+_sum(?:_lateral)?\.', r'backbone.fpn_lateral\1.'),
    (r'^fpn_res(\d)_\d+_sum\.', r'backbone.fpn_output\1.'),
    (r'^conv_rpn_fpn2\.', 'proposal_generator.rpn_head.conv.'),
    (r'^rpn_cls_logits_fpn2\.', 'proposal_generator.rpn_head.objectness_logits.'),
    (r'^rpn_bbox_pred_fpn2\.', 'proposal_generator.rpn_head.anchor_deltas.'),
    (r'^fc([67])\.', lambda m: f'roi_heads.box_head.fc{int(m[1]) - 5}.'),
    (r'^(cls_score|bbox_pred)\.', r'roi_heads.box_predictor.\1.'),
    (r'^_\[mask\]_fcn(\d)\.', r'roi_heads.mask_head.mask_fcn\1.'),
    (r'^conv5_mask\.', 'roi_heads.mask_head.deconv.'),
    (r'^mask_fcn_logits\.', 'roi_heads.mask_head.predictor.'),
)
_SCORES, _BOXES = (rf'roi_heads\.box_predictor\.{layer}\.(.*)' for layer in ('cls_score', 'bbox_pred'))
_MASKS = r'roi_heads\.mask_head\.predictor\.(.*)'
_CAFFE2 = (
    Rule(_SCORES, 'roi_head.bbox_head.fc_cls.{1}', 'background moved to the end', lambda t: t.roll(-1, 0)),
    Rule(_BOXES, 'roi_head.bbox_head.fc_reg.{1}', 'background dropped', lambda t: t[4:]),
    Rule(_MASKS, 'roi_head.mask_head.conv_logits.{1}', 'background dropped', lambda t: t[1:]),
    Rule(r'stem\.conv1\.bias', 'backbone.bn1.running_mean', *FOLD),
    Rule(r'res([2-5])\.(\d+)\.conv([123])\.bias', 'backbone.layer{1-1}.{2}.bn{3}.running_mean', *FOLD),
    Rule(r'.*_momentum', None, "the optimizer's momentum"),
)


_UNUSED = Rule(r'stem\.conv1\.bias', None, "of ImageNet's network; Detectron's has none")


def _caffe2(source: Source) -> KeyMap:
    needed = _of_heads(source)
    detector = 'roi_heads.box_predictor.cls_score.bias' in source
    rows, columns = source['res2.0.conv2.weight'].shape[:2]
    plain = rows == columns  # no grouped convolutions, so not ResNeXt
    if plain:
        needed |= {'backbone.style': 'caffe', **checks.preprocessing([103.53, 116.28, 123.675], [1.0] * 3, False)}
    if detector:
        needed |= checks.roi_align(aligned=False, sampling_ratio=2)
    rules = (*[_UNUSED] * detector, *_CAFFE2, *_RESNET, *_fpn(source), *_RCNN)
    return KeyMap(rules, needed, complete=_add_statistics, unchecked='' if plain else _UNCHECKED)


DETECTRON2 = Format(
    'Detectron2',
    names_with(*((f'{at}stem.conv1.weight', f'{at}res2.0.conv1.weight') for at in _PREFIXES)),
    _detectron2,
)
CAFFE2 = Format(
    'Caffe2 or Detectron',
    names_with(('conv1_w', 'res2_0_branch2b_w')),
    _caffe2,
    _SPELLINGS,
)
