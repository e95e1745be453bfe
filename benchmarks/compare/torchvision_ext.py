# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""mmcv's compiled operators that SSD and Faster R-CNN call, by torchvision's: for a GPU machine without a compiler.

    cp benchmarks/compare/torchvision_ext.py SITE_PACKAGES/mmcv/_ext.py

where SITE_PACKAGES holds mmcv without its own ``_ext``, such as one installed with ``MMCV_WITH_OPS=0``. Every other
operator can be imported and raises when it is called.
"""

import torch


def get_compiler_version():
    return 'none: operators of torchvision'


def get_compiling_cuda_version():
    return str(torch.version.cuda)


def _torchvision():
    import torchvision  # noqa: F401  registers its operators

    return torch.ops.torchvision


def nms(boxes, scores, iou_threshold, offset):
    """Indices of the boxes kept, by falling score."""
    if offset:
        raise NotImplementedError(f'nms with offset={offset}: torchvision has offset=0 only')
    return _torchvision().nms(boxes, scores, iou_threshold)


def roi_align_forward(
    input,
    rois,
    output,
    argmax_y,
    argmax_x,
    aligned_height,
    aligned_width,
    spatial_scale,
    sampling_ratio,
    pool_mode,
    aligned,
):
    _only_average(pool_mode)
    output.copy_(
        _torchvision().roi_align(input, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned)
    )


def roi_align_backward(
    grad_output,
    rois,
    argmax_y,
    argmax_x,
    grad_input,
    aligned_height,
    aligned_width,
    spatial_scale,
    sampling_ratio,
    pool_mode,
    aligned,
):
    _only_average(pool_mode)
    grad_input.copy_(
        _torchvision()._roi_align_backward(
            grad_output, rois, spatial_scale, aligned_height, aligned_width, *grad_input.shape, sampling_ratio, aligned
        )
    )


def _only_average(pool_mode):
    if pool_mode != 1:
        raise NotImplementedError('roi_align with maxima: torchvision has averages only')


def __getattr__(name):
    if name.startswith('__'):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(f'mmcv operator {name} is not among those of torchvision_ext.py')

    return missing
