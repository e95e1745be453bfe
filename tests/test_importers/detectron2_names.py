"""Names and shapes of Detectron2's checkpoints, and of those of Caffe2 that its model zoo started from."""

import torch

from .foreign import BLOCKS, conv, linear, norm


def resnet(prefix='backbone.bottom_up.', depth=50):
    shapes = {**conv(f'{prefix}stem.conv1', 64, 3, 7, False), **norm(f'{prefix}stem.conv1.norm', 64, False)}
    inner = 64
    for stage, count in enumerate(BLOCKS[depth]):
        width = 64 * 2**stage
        for block in range(count):
            name = f'{prefix}res{stage + 2}.{block}'
            layers = [('conv1', width, inner, 1), ('conv2', width, width, 3), ('conv3', width * 4, width, 1)]
            layers += [('shortcut', width * 4, inner, 1)] if block == 0 else []
            for layer, out, last, kernel in layers:
                shapes.update(conv(f'{name}.{layer}', out, last, kernel, False))
                shapes.update(norm(f'{name}.{layer}.norm', out, False))
            inner = width * 4
    return shapes


def fpn(levels):
    shapes = {}
    for level in levels:
        shapes.update(conv(f'backbone.fpn_lateral{level}', 256, 64 * 2**level))
        shapes.update(conv(f'backbone.fpn_output{level}', 256, 256, 3))
    return shapes


def rcnn(classes=80, mask=True):
    shapes = {
        'pixel_mean': (3, 1, 1),
        'pixel_std': (3, 1, 1),
        **resnet(),
        **fpn((2, 3, 4, 5)),
        **conv('proposal_generator.rpn_head.conv', 256, 256, 3),
        **conv('proposal_generator.rpn_head.objectness_logits', 3, 256),
        **conv('proposal_generator.rpn_head.anchor_deltas', 12, 256),
        **{f'proposal_generator.anchor_generator.cell_anchors.{i}': (3, 4) for i in range(5)},
        **linear('roi_heads.box_head.fc1', 1024, 256 * 49),
        **linear('roi_heads.box_head.fc2', 1024, 1024),
        **linear('roi_heads.box_predictor.cls_score', classes + 1, 1024),
        **linear('roi_heads.box_predictor.bbox_pred', classes * 4, 1024),
    }
    if mask:
        for i in range(1, 5):
            shapes.update(conv(f'roi_heads.mask_head.mask_fcn{i}', 256, 256, 3))
        shapes.update(conv('roi_heads.mask_head.deconv', 256, 256, 2))
        shapes.update(conv('roi_heads.mask_head.predictor', classes, 256))
    return shapes


def retinanet(classes=80):
    shapes = {
        **resnet(),
        **fpn((3, 4, 5)),
        **conv('backbone.top_block.p6', 256, 2048, 3),
        **conv('backbone.top_block.p7', 256, 256, 3),
    }
    for tower in ('cls_subnet', 'bbox_subnet'):
        for i in (0, 2, 4, 6):
            shapes.update(conv(f'head.{tower}.{i}', 256, 256, 3))
    return {**shapes, **conv('head.cls_score', 9 * classes, 256, 3), **conv('head.bbox_pred', 36, 256, 3)}


def msra_pixels(state):
    """The buffers that Detectron2's older files keep of MSRA's networks."""
    state['pixel_mean'] = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    state['pixel_std'] = torch.ones(3, 1, 1)
    return state


def caffe2_resnet(depth=50, affine_only=True):
    parts = ('s', 'b') if affine_only else ('s', 'b', 'rm', 'riv')
    shapes = {'conv1_w': (64, 3, 7, 7), 'conv1_b': (64,), **{f'res_conv1_bn_{part}': (64,) for part in parts}}
    inner = 64
    for stage, count in enumerate(BLOCKS[depth]):
        width = 64 * 2**stage
        for block in range(count):
            name = f'res{stage + 2}_{block}_branch'
            layers = [('2a', width, inner, 1), ('2b', width, width, 3), ('2c', width * 4, width, 1)]
            layers += [('1', width * 4, inner, 1)] if block == 0 else []
            for layer, out, last, kernel in layers:
                shapes[f'{name}{layer}_w'] = (out, last, kernel, kernel)
                shapes.update({f'{name}{layer}_bn_{part}': (out,) for part in parts})
            inner = width * 4
    return shapes


def caffe2_rcnn(classes=80):
    shapes = caffe2_resnet()
    del shapes['conv1_b']
    for level, block in ((5, 2), (4, 5), (3, 3), (2, 2)):
        lateral = '' if level == 5 else '_lateral'
        shapes[f'fpn_inner_res{level}_{block}_sum{lateral}_w'] = (256, 64 * 2**level, 1, 1)
        shapes[f'fpn_inner_res{level}_{block}_sum{lateral}_b'] = (256,)
        shapes[f'fpn_res{level}_{block}_sum_w'] = (256, 256, 3, 3)
        shapes[f'fpn_res{level}_{block}_sum_b'] = (256,)
    pairs = {
        'conv_rpn_fpn2': (256, 256, 3, 3),
        'rpn_cls_logits_fpn2': (3, 256, 1, 1),
        'rpn_bbox_pred_fpn2': (12, 256, 1, 1),
        'fc6': (1024, 256 * 49),
        'fc7': (1024, 1024),
        'cls_score': (classes + 1, 1024),
        'bbox_pred': (4 * (classes + 1), 1024),
        **{f'_[mask]_fcn{i}': (256, 256, 3, 3) for i in range(1, 5)},
        'conv5_mask': (256, 256, 2, 2),
        'mask_fcn_logits': (classes + 1, 256, 1, 1),
    }
    for name, shape in pairs.items():
        shapes.update({f'{name}_w': shape, f'{name}_b': (256,) if name == 'conv5_mask' else (shape[0],)})
    return shapes
