# Table III: YOLOv3 at 320 pixels, the own baseline upgraded, 200 -> 50 epochs.
_base_ = './yolov3_d53-320_200e_voc0712.py'
model = dict(backbone=dict(type='DeformUpgrade', base_type='Darknet', targets='last:3', init_cfg=None))
load_from = 'work_dirs/yolov3_d53-320_200e_voc0712/epoch_200.pth'
train_cfg = dict(max_epochs=50)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='MultiStepLR', begin=0, end=50, by_epoch=True, milestones=[33, 42], gamma=0.1),
]
custom_hooks = [dict(type='DeformUpgradeHook')]
