# RetinaNet, R50-FPN: published baseline 36.5 box AP.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']
custom_imports = dict(imports=['mmdeform_upgrade'], allow_failed_imports=False)
model = dict(backbone=dict(type='DeformUpgrade', base_type='ResNet', targets='res3+res4+res5', init_cfg=None))
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'
train_cfg = dict(max_epochs=3, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=125),
    dict(type='MultiStepLR', end=3, by_epoch=True, gamma=0.1, begin=2.0, milestones=[0], convert_to_iter_based=True),
    dict(type='MultiStepLR', end=3, by_epoch=True, gamma=0.1, begin=2.5, milestones=[0], convert_to_iter_based=True),
]
optim_wrapper = dict(constructor='OffsetOptimizerConstructor', offset_optimizer=dict(type='Adam', lr=0.002))
custom_hooks = [dict(type='RunGuardHook'), dict(type='DeformUpgradeHook')]
