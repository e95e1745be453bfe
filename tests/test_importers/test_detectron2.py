"""Detectron2's and Caffe2's checkpoints in mmdet's networks. Neither library is needed."""

import re

import pytest
import torch
from torch.nn import functional as F

from mmdeform_upgrade.checkpoint import fit_baseline
from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.importers import import_state_dict, matching_formats

from . import detectron2_names, foreign
from .test_torchvision import FASTER, MASK, RETINA, close, everything_is_accounted_for
from .torchvision_oracles import resnet

MSRA = {
    'backbone.style': 'caffe',
    'data_preprocessor.mean': [103.53, 116.28, 123.675],
    'data_preprocessor.std': [1.0, 1.0, 1.0],
    'data_preprocessor.bgr_to_rgb': False,
}
ROI = {
    f'roi_head.{name}_roi_extractor.roi_layer': dict(type='RoIAlign', output_size=size, sampling_ratio=2, aligned=False)
    for name, size in (('bbox', 7), ('mask', 14))
}


def _empty(shapes):
    return {name: torch.empty(shape, device='meta') for name, shape in shapes.items()}


def _anchors(state):
    """What Detectron2's older files keep: (3, 4) a level, one size, ratios 0.5, 1, 2."""
    for i in range(5):
        size = 32.0 * 2**i
        sides = torch.tensor([(size / r**0.5, size * r**0.5) for r in (0.5, 1.0, 2.0)])
        state[f'proposal_generator.anchor_generator.cell_anchors.{i}'] = torch.cat([-sides, sides], 1) / 2
    return state


def test_what_newer_files_do_not_say_is_left_to_the_user():
    state = detectron2_names.rcnn(mask=False)
    older = import_state_dict(detectron2_names.msra_pixels(foreign.random_of(state)))
    newer = import_state_dict(foreign.random_of({key: shape for key, shape in state.items() if 'pixel' not in key}))
    assert "compare yourself: data_preprocessor's mean, std and bgr_to_rgb, and backbone.style" in str(newer)
    assert 'compare yourself' not in str(older)


@pytest.mark.parametrize('mask', [True, False])
def test_rcnn_loads_strictly_and_changes_nothing(stock, mask):
    source = _anchors(detectron2_names.msra_pixels(foreign.random_of(detectron2_names.rcnn(mask=mask))))
    imported = import_state_dict(source)
    everything_is_accounted_for(imported, source)
    assert not imported.changed and len(imported.dropped) == 7
    model = stock(MASK if mask else FASTER, MSRA)
    model.load_state_dict(fit_baseline(imported, model).state_dict, strict=True)


def test_backbone_and_fpn_compute_in_mmdet_what_detectron2_computes(stock):
    source = detectron2_names.msra_pixels(foreign.random_of(detectron2_names.rcnn(mask=False)))
    model = stock(FASTER, MSRA)
    model.load_state_dict(fit_baseline(import_state_dict(source), model).state_dict, strict=True)
    renamed = {}
    for name, value in source.items():
        name = re.sub(r'^backbone\.bottom_up\.(?:stem\.)?', '', name)
        name = re.sub(r'^res(\d)', lambda m: f'layer{int(m[1]) - 1}', name)
        name = re.sub(r'conv(\d)\.norm', r'bn\1', name).replace('shortcut.norm', 'downsample.1')
        renamed[name.replace('shortcut', 'downsample.0')] = value
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = resnet(renamed, x, stride_in=1)
        above, outs = None, []
        for level in (5, 4, 3, 2):
            lateral = F.conv2d(
                maps[level - 2],
                source[f'backbone.fpn_lateral{level}.weight'],
                source[f'backbone.fpn_lateral{level}.bias'],
            )
            above = lateral if above is None else lateral + F.interpolate(above, scale_factor=2, mode='nearest')
            outs.insert(
                0,
                F.conv2d(
                    above,
                    source[f'backbone.fpn_output{level}.weight'],
                    source[f'backbone.fpn_output{level}.bias'],
                    padding=1,
                ),
            )
        for ours, theirs in zip(model.extract_feat(x), [*outs, F.max_pool2d(outs[-1], 1, 2)], strict=True):
            close(ours, theirs)


def test_retinanet_keeps_every_anchor_with_its_outputs(stock):
    source = foreign.random_of(detectron2_names.retinanet())
    imported = import_state_dict(source)
    everything_is_accounted_for(imported, source)
    model = stock(RETINA, {'neck.relu_before_extra_convs': True})
    model.load_state_dict(fit_baseline(imported, model).state_dict, strict=True)
    # Detectron2 lists, for each size, all ratios.
    theirs = []
    for size in (32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)):
        for ratio in (0.5, 1.0, 2.0):
            w = (size**2 / ratio) ** 0.5
            theirs.append((w, ratio * w))
    base = model.bbox_head.prior_generator.base_anchors[0]
    for rows, name in ((80, 'retina_cls'), (4, 'retina_reg')):
        weight = source[f'head.{"cls_score" if rows == 80 else "bbox_pred"}.weight']
        ours = imported.state_dict[f'bbox_head.{name}.weight']
        for anchor, (x1, y1, x2, y2) in enumerate(base.tolist()):
            index = next(i for i, (w, h) in enumerate(theirs) if abs(w - x2 + x1) < 0.1 and abs(h - y2 + y1) < 0.1)
            assert torch.equal(ours[anchor * rows : (anchor + 1) * rows], weight[index * rows : (index + 1) * rows])


def test_backbones_of_imagenet_are_imported_under_either_prefix():
    for prefix in ('', 'backbone.', 'backbone.bottom_up.'):
        source = foreign.random_of(detectron2_names.resnet(prefix))
        if not prefix:  # the classifier, as Detectron2's converter writes torchvision's network
            source.update({'stem.fc.weight': torch.ones(10, 2048), 'stem.fc.bias': torch.ones(10)})
        imported = import_state_dict(source)
        everything_is_accounted_for(imported, source)
        assert {k.removeprefix('backbone.') for k in imported.state_dict} == set(
            foreign.torchvision_resnet(50, counter=False, fc=False)
        )


def test_caffe2_rcnn_loads_strictly_with_the_background_moved(stock):
    source = foreign.random_of(detectron2_names.caffe2_rcnn())
    momentum = {f'{name}_momentum': value for name, value in source.items() if '_bn_' not in name}  # as Detectron saves
    imported = import_state_dict({**source, **momentum})
    everything_is_accounted_for(imported, {**source, **momentum})
    assert set(imported.dropped) - {'conv1_b'} == set(momentum)  # Detectron keeps the bias of ImageNet's network unused
    assert not imported.state_dict['backbone.bn1.running_mean'].any()
    model = stock(MASK, {**MSRA, **ROI})
    model.load_state_dict(fit_baseline(imported, model).state_dict, strict=True)
    ours = imported.state_dict
    assert torch.equal(ours['roi_head.bbox_head.fc_cls.bias'], source['cls_score_b'].roll(-1))
    assert torch.equal(ours['roi_head.bbox_head.fc_reg.weight'], source['bbox_pred_w'][4:])
    assert torch.equal(ours['roi_head.mask_head.conv_logits.weight'], source['mask_fcn_logits_w'][1:])
    assert torch.equal(ours['neck.lateral_convs.3.conv.weight'], source['fpn_inner_res5_2_sum_w'])
    assert torch.equal(ours['neck.lateral_convs.0.conv.bias'], source['fpn_inner_res2_2_sum_lateral_b'])


@pytest.mark.parametrize('affine_only', [True, False])
def test_caffe2_backbone_computes_the_same_norms_and_biases(affine_only):
    from mmdet.models import ResNet

    source = foreign.random_of(detectron2_names.caffe2_resnet(affine_only=affine_only))
    imported = import_state_dict(source)
    everything_is_accounted_for(imported, source)
    backbone = ResNet(50, style='caffe')
    backbone.eval()
    state = {k.removeprefix('backbone.'): v for k, v in imported.state_dict.items()}
    assert not backbone.load_state_dict(state, strict=False).unexpected_keys
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        y = F.conv2d(x, source['conv1_w'], source['conv1_b'], stride=2, padding=3)
        y = _norm(y, source, 'res_conv1_bn')
        close(backbone.bn1(backbone.conv1(x)), y)
        y = F.conv2d(F.max_pool2d(F.relu(y), 3, 2, 1), source['res2_0_branch1_w'])
        x = backbone.maxpool(F.relu(backbone.bn1(backbone.conv1(x))))
        close(backbone.layer1[0].downsample(x), _norm(y, source, 'res2_0_branch1_bn'))


def _norm(y, p, name):
    scale, shift = (p[f'{name}_{part}'].view(1, -1, 1, 1) for part in ('s', 'b'))
    if f'{name}_rm' in p:
        y = (y - p[f'{name}_rm'].view(1, -1, 1, 1)) / (p[f'{name}_riv'].view(1, -1, 1, 1) + 1e-5).sqrt()
    return y * scale + shift


def test_settings_that_change_the_numbers_are_named(stock):
    source = detectron2_names.msra_pixels(_empty(detectron2_names.rcnn()))
    problems = '\n'.join(import_state_dict(source).problems(stock(FASTER)))
    for text in (
        "backbone.style='caffe'",
        'set model.data_preprocessor.mean=[103.53, 116.28, 123.675]',
        'set model.data_preprocessor.std=[1.0, 1.0, 1.0]',
        'set model.data_preprocessor.bgr_to_rgb=False',
    ):
        assert text in problems, problems
    problems = '\n'.join(import_state_dict(_empty(detectron2_names.caffe2_rcnn())).problems(stock(MASK)))
    for text in ("style='caffe'", 'set model.roi_head.mask_roi_extractor.roi_layer.sampling_ratio=2'):
        assert text in problems, problems
    problems = import_state_dict(_empty(detectron2_names.retinanet())).problems(stock(RETINA))
    assert len(problems) == 1 and 'relu_before_extra_convs=True' in problems[0]


def test_networks_that_mmdet_cannot_hold_are_refused():
    source = _empty({**detectron2_names.resnet('backbone.'), 'roi_heads.res5.0.conv1.weight': (512, 1024, 1, 1)})
    with pytest.raises(CheckpointError, match=r'(?s)like Detectron2.*does not know \(1\): roi_heads.res5.0.conv1'):
        import_state_dict(source)
    source = _empty({**detectron2_names.caffe2_resnet(), 'retnet_cls_pred_fpn3_w': (720, 256, 3, 3)})
    with pytest.raises(CheckpointError, match=r'(?s)looks like Caffe2.*does not know \(1\): retnet_cls_pred_fpn3_w'):
        import_state_dict(source)


def test_every_family_is_recognised_as_one_format():
    for shapes, name in (
        (detectron2_names.rcnn, 'Detectron2'),
        (detectron2_names.retinanet, 'Detectron2'),
        (detectron2_names.resnet, 'Detectron2'),
        (detectron2_names.caffe2_rcnn, 'Caffe2'),
        (detectron2_names.caffe2_resnet, 'Caffe2'),
    ):
        (found,) = matching_formats(_empty(shapes()))
        assert name in found.name
