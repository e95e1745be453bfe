# Table IV: YOLOv3 at 320 pixels, GluonCV's baseline (33.6 there) upgraded, fine-tuned for 70 epochs.
_base_ = '../gluoncv/yolov3_d53-320_coco.py'
model = dict(backbone=dict(type='DeformUpgrade', base_type='Darknet', targets='last:3'))
load_from = 'checkpoints/yolo3_darknet53_coco-09767802.params'
train_cfg = dict(max_epochs=70)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='MultiStepLR', begin=0, end=70, by_epoch=True, milestones=[47, 58], gamma=0.1),
]
custom_hooks = [dict(type='DeformUpgradeHook')]
