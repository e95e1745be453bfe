"""Names and shapes of foreign checkpoints, written down from the libraries' public sources, with random values.

Detectron2's and Caffe2's have a file of their own: ``detectron2_names.py``.
"""

import torch

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
VGG = (  # index, out, in
    (0, 64, 3),
    (2, 64, 64),
    (5, 128, 64),
    (7, 128, 128),
    (10, 256, 128),
    (12, 256, 256),
    (14, 256, 256),
    (17, 512, 256),
    (19, 512, 512),
    (21, 512, 512),
)
COCO_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


def random_of(shapes):
    generator = torch.Generator().manual_seed(1)
    values = {}
    for name, shape in shapes.items():
        if name.endswith('num_batches_tracked'):
            values[name] = torch.tensor(7)
            continue
        fan_in = max(1, torch.Size(shape[1:]).numel())
        values[name] = torch.rand(shape, generator=generator).sub_(0.5).mul_((12 / fan_in) ** 0.5)
        if name.endswith(('running_var', '_bn_riv')) or (len(shape) == 1 and name.endswith(('.weight', '_bn_s'))):
            values[name] = values[name].abs() * 0.2 + 0.6
    return values


def norm(name, width, counter=True):
    shapes = {f'{name}.{part}': (width,) for part in ('weight', 'bias', 'running_mean', 'running_var')}
    return {**shapes, **({f'{name}.num_batches_tracked': ()} if counter else {})}


def conv(name, out, inner, kernel=1, bias=True):
    shapes = {f'{name}.weight': (out, inner, kernel, kernel)}
    return {**shapes, **({f'{name}.bias': (out,)} if bias else {})}


def linear(name, out, inner):
    return {f'{name}.weight': (out, inner), f'{name}.bias': (out,)}


def torchvision_resnet(depth=50, prefix='', counter=True, fc=True):
    shapes = {**conv(f'{prefix}conv1', 64, 3, 7, False), **norm(f'{prefix}bn1', 64, counter)}
    wide = 4 if depth >= 50 else 1
    inner = 64
    for stage, count in enumerate(BLOCKS[depth]):
        width = 64 * 2**stage
        for block in range(count):
            name = f'{prefix}layer{stage + 1}.{block}'
            kernels = (1, 3, 1) if wide == 4 else (3, 3)
            widths = (width, width, width * 4) if wide == 4 else (width, width)
            last = inner
            for i, (kernel, out) in enumerate(zip(kernels, widths, strict=True), 1):
                shapes.update(conv(f'{name}.conv{i}', out, last, kernel, False))
                shapes.update(norm(f'{name}.bn{i}', out, counter))
                last = out
            if block == 0 and inner != width * wide:
                shapes.update(conv(f'{name}.downsample.0', width * wide, inner, 1, False))
                shapes.update(norm(f'{name}.downsample.1', width * wide, counter))
            inner = width * wide
    return {**shapes, **(linear(f'{prefix}fc', 1000, inner) if fc else {})}


def torchvision_fpn(channels, nested):
    zero = '.0' if nested else ''
    shapes = {}
    for level, width in enumerate(channels):
        shapes.update(conv(f'backbone.fpn.inner_blocks.{level}{zero}', 256, width))
        shapes.update(conv(f'backbone.fpn.layer_blocks.{level}{zero}', 256, 256, 3))
    return shapes


def torchvision_rcnn(outputs=91, nested=True, mask=False):
    shapes = {
        **torchvision_resnet(50, 'backbone.body.', False, False),
        **torchvision_fpn((256, 512, 1024, 2048), nested),
        **conv('rpn.head.conv.0.0' if nested else 'rpn.head.conv', 256, 256, 3),
        **conv('rpn.head.cls_logits', 3, 256),
        **conv('rpn.head.bbox_pred', 12, 256),
        **linear('roi_heads.box_head.fc6', 1024, 256 * 49),
        **linear('roi_heads.box_head.fc7', 1024, 1024),
        **linear('roi_heads.box_predictor.cls_score', outputs, 1024),
        **linear('roi_heads.box_predictor.bbox_pred', outputs * 4, 1024),
    }
    if mask:
        for i in range(4):
            name = f'roi_heads.mask_head.{i}.0' if nested else f'roi_heads.mask_head.mask_fcn{i + 1}'
            shapes.update(conv(name, 256, 256, 3))
        shapes.update(conv('roi_heads.mask_predictor.conv5_mask', 256, 256, 2))
        shapes.update(conv('roi_heads.mask_predictor.mask_fcn_logits', outputs, 256))
    return shapes


def torchvision_retinanet(outputs=91, nested=True):
    shapes = {
        **torchvision_resnet(50, 'backbone.body.', False, False),
        **torchvision_fpn((512, 1024, 2048), nested),
        **conv('backbone.fpn.extra_blocks.p6', 256, 256, 3),
        **conv('backbone.fpn.extra_blocks.p7', 256, 256, 3),
    }
    for head in ('classification', 'regression'):
        for i in range(4):
            name = f'head.{head}_head.conv.{i}.0' if nested else f'head.{head}_head.conv.{2 * i}'
            shapes.update(conv(name, 256, 256, 3))
    return {
        **shapes,
        **conv('head.classification_head.cls_logits', 9 * outputs, 256, 3),
        **conv('head.regression_head.bbox_reg', 36, 256, 3),
    }


def torchvision_ssd(outputs=91):
    shapes = {'backbone.scale_weight': (512,)}
    for index, out, inner in VGG:
        shapes.update(conv(f'backbone.features.{index}', out, inner, 3))
    for index in (1, 3, 5):
        shapes.update(conv(f'backbone.extra.0.{index}', 512, 512, 3))
    shapes.update(conv('backbone.extra.0.7.1', 1024, 512, 3))
    shapes.update(conv('backbone.extra.0.7.3', 1024, 1024, 1))
    for level, (inner, middle, out) in enumerate(
        ((1024, 256, 512), (512, 128, 256), (256, 128, 256), (256, 128, 256)), 1
    ):
        shapes.update(conv(f'backbone.extra.{level}.0', middle, inner, 1))
        shapes.update(conv(f'backbone.extra.{level}.2', out, middle, 3))
    for level, (inner, cells) in enumerate(zip((512, 1024, 512, 256, 256, 256), (4, 6, 6, 6, 4, 4), strict=True)):
        shapes.update(conv(f'head.classification_head.module_list.{level}', cells * outputs, inner, 3))
        shapes.update(conv(f'head.regression_head.module_list.{level}', cells * 4, inner, 3))
    return shapes


def torchvision_deeplab(depth=50, classes=21):
    shapes = torchvision_resnet(depth, 'backbone.', True, False)
    for branch, kernel in enumerate((1, 3, 3, 3)):
        shapes.update(conv(f'classifier.0.convs.{branch}.0', 256, 2048, kernel, False))
        shapes.update(norm(f'classifier.0.convs.{branch}.1', 256))
    shapes.update(
        {
            **conv('classifier.0.convs.4.1', 256, 2048, 1, False),
            **norm('classifier.0.convs.4.2', 256),
            **conv('classifier.0.project.0', 256, 1280, 1, False),
            **norm('classifier.0.project.1', 256),
            **conv('classifier.1', 256, 256, 3, False),
            **norm('classifier.2', 256),
            **conv('classifier.4', classes, 256),
            **conv('aux_classifier.0', 256, 1024, 3, False),
            **norm('aux_classifier.1', 256),
            **conv('aux_classifier.4', classes, 256),
        }
    )
    return shapes


def old_ssd(classes=20):
    """mmdet's SSD300 of 2.0 to 2.13."""
    shapes = {}
    for index, out, inner in (*VGG, (24, 512, 512), (26, 512, 512), (28, 512, 512), (31, 1024, 512)):
        shapes.update(conv(f'backbone.features.{index}', out, inner, 3))
    shapes.update(conv('backbone.features.33', 1024, 1024, 1))
    for index, (out, inner, kernel) in enumerate(
        (
            (256, 1024, 1),
            (512, 256, 3),
            (128, 512, 1),
            (256, 128, 3),
            (128, 256, 1),
            (256, 128, 3),
            (128, 256, 1),
            (256, 128, 3),
        )
    ):
        shapes.update(conv(f'backbone.extra.{index}', out, inner, kernel))
    shapes['backbone.l2_norm.weight'] = (512,)
    for level, (inner, cells) in enumerate(zip((512, 1024, 512, 256, 256, 256), (4, 6, 6, 6, 4, 4), strict=True)):
        shapes.update(conv(f'bbox_head.cls_convs.{level}', cells * (classes + 1), inner, 3))
        shapes.update(conv(f'bbox_head.reg_convs.{level}', cells * 4, inner, 3))
    return shapes
