# RTMDet-s: published baseline 44.5 box AP.
_base_ = ['mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py']
custom_imports = dict(imports=['mmdeform_upgrade'], allow_failed_imports=False)
model = dict(backbone=dict(type='DeformUpgrade', base_type='CSPNeXt', targets='last:3', init_cfg=None))
load_from = 'https://download.openmmlab.com/mmdetection/v3.0/rtmdet/rtmdet_s_8xb32-300e_coco/rtmdet_s_8xb32-300e_coco_20220905_161602-387a891e.pth'
train_cfg = dict(max_epochs=75, val_interval=3, dynamic_intervals=[(70, 1)])
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-05, by_epoch=False, begin=0, end=250),
    dict(
        type='CosineAnnealingLR', eta_min=0.0002, begin=38, end=75, T_max=37, by_epoch=True, convert_to_iter_based=True
    ),
]
custom_hooks = [
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True, priority=49),
    dict(
        type='PipelineSwitchHook',
        switch_epoch=70,
        switch_pipeline=[
            dict(type='LoadImageFromFile', backend_args=None),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='RandomResize', scale=(640, 640), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type='RandomCrop', crop_size=(640, 640)),
            dict(type='YOLOXHSVRandomAug'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='Pad', size=(640, 640), pad_val=dict(img=(114, 114, 114))),
            dict(type='PackDetInputs'),
        ],
    ),
    dict(type='RunGuardHook'),
    dict(type='DeformUpgradeHook'),
]
default_hooks = dict(checkpoint=dict(interval=3))
optim_wrapper = dict(constructor='OffsetOptimizerConstructor', offset_optimizer=dict(type='Adam', lr=0.002))
