# Table IV: YOLOv3 at 320 pixels, own baseline, from Darknet-53's ImageNet weights and their normalisation.
_base_ = '../gluoncv/yolov3_d53-320_coco.py'
model = dict(
    data_preprocessor=dict(mean=[0, 0, 0], std=[255.0, 255.0, 255.0]),
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://darknet53')),
)
