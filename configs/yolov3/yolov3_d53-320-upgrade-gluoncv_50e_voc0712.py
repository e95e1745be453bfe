# Table III: YOLOv3 at 320 pixels, GluonCV's baseline (79.3 there) upgraded, fine-tuned for 50 epochs.
_base_ = '../gluoncv/yolov3_d53-320_voc.py'
model = dict(backbone=dict(type='DeformUpgrade', base_type='Darknet', targets='last:3'))
load_from = 'checkpoints/yolo3_darknet53_voc-f5ece5ce.params'
train_cfg = dict(max_epochs=50)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='MultiStepLR', begin=0, end=50, by_epoch=True, milestones=[33, 42], gamma=0.1),
]
custom_hooks = [dict(type='DeformUpgradeHook')]
