# SSD512, VGG16: published baseline 29.5 box AP.
_base_ = ['mmdet::ssd/ssd512_coco.py']
custom_imports = dict(imports=['mmdeform_upgrade'], allow_failed_imports=False)
model = dict(backbone=dict(type='DeformUpgrade', base_type='SSDVGG', targets='last:3', init_cfg=None))
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/ssd/ssd512_coco/ssd512_coco_20210803_022849-0a47a1ca.pth'
train_cfg = dict(max_epochs=6, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=125),
    dict(type='MultiStepLR', begin=0, end=6, by_epoch=True, gamma=0.1, milestones=[4, 5]),
]
optim_wrapper = dict(constructor='OffsetOptimizerConstructor', offset_optimizer=dict(type='Adam', lr=0.002))
custom_hooks = [
    dict(type='NumClassCheckHook'),
    dict(type='CheckInvalidLossHook', interval=50, priority='VERY_LOW'),
    dict(type='RunGuardHook'),
    dict(type='DeformUpgradeHook'),
]
