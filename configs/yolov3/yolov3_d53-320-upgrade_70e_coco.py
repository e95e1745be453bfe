# Table IV: YOLOv3 at 320 pixels, the own baseline upgraded, 280 -> 70 epochs.
_base_ = './yolov3_d53-320_280e_coco.py'
model = dict(backbone=dict(type='DeformUpgrade', base_type='Darknet', targets='last:3', init_cfg=None))
load_from = 'work_dirs/yolov3_d53-320_280e_coco/epoch_280.pth'
train_cfg = dict(max_epochs=70)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='MultiStepLR', begin=0, end=70, by_epoch=True, milestones=[47, 58], gamma=0.1),
]
custom_hooks = [dict(type='DeformUpgradeHook')]
