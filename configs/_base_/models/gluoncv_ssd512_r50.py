# For weights imported from GluonCV: what its presets normalise pictures with, and NMS by class over unclipped boxes.
_base_ = './ssd512_r50.py'
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(init_cfg=None),
    # split_thr=1: class by class, as GluonCV. Else mmcv shifts the classes apart by the largest coordinate, and boxes
    # that reach beyond the upper left corner meet those of the class before.
    test_cfg=dict(nms=dict(split_thr=1)),
)
