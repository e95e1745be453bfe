# YOLOX-s: published baseline 40.5 box AP.
_base_ = ['mmdet::yolox/yolox_s_8xb8-300e_coco.py']
custom_imports = dict(imports=['mmdeform_upgrade'], allow_failed_imports=False)
model = dict(backbone=dict(type='DeformUpgrade', base_type='CSPDarknet', targets='last:3'))
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/yolox/yolox_s_8x8_300e_coco/yolox_s_8x8_300e_coco_20211121_095711-4592a793.pth'
train_cfg = dict(max_epochs=75, val_interval=3)
param_scheduler = [
    dict(type='mmdet.QuadraticWarmupLR', by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min=0.0005, begin=1, T_max=71, end=71, by_epoch=True, convert_to_iter_based=True
    ),
    dict(type='ConstantLR', by_epoch=True, factor=1, begin=71, end=75),
]
custom_hooks = [
    dict(type='YOLOXModeSwitchHook', num_last_epochs=4, priority=48),
    dict(type='SyncNormHook', priority=48),
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0001, update_buffers=True, priority=49),
    dict(type='RunGuardHook'),
    dict(type='DeformUpgradeHook'),
]
default_hooks = dict(checkpoint=dict(interval=3))
optim_wrapper = dict(constructor='OffsetOptimizerConstructor', offset_optimizer=dict(type='Adam', lr=0.002))
