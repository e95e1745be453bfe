# FCOS, R50-FPN: published baseline 36.6 box AP.
_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py']
custom_imports = dict(imports=['mmdeform_upgrade'], allow_failed_imports=False)
model = dict(backbone=dict(type='DeformUpgrade', base_type='ResNet', targets='res3+res4+res5', init_cfg=None))
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/fcos/fcos_r50_caffe_fpn_gn-head_1x_coco/fcos_r50_caffe_fpn_gn-head_1x_coco-821213aa.pth'
train_cfg = dict(max_epochs=3, val_interval=1)
param_scheduler = [
    dict(type='ConstantLR', factor=0.3333333333333333, by_epoch=False, begin=0, end=125),
    dict(type='MultiStepLR', end=3, by_epoch=True, gamma=0.1, begin=2.0, milestones=[0], convert_to_iter_based=True),
    dict(type='MultiStepLR', end=3, by_epoch=True, gamma=0.1, begin=2.5, milestones=[0], convert_to_iter_based=True),
]
optim_wrapper = dict(constructor='OffsetOptimizerConstructor', offset_optimizer=dict(type='Adam', lr=0.002))
custom_hooks = [dict(type='RunGuardHook'), dict(type='DeformUpgradeHook')]
