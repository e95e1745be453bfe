_base_ = ['ssd320_r50_cutouts.py']
custom_hooks = [
    dict(type='DeformUpgradeHook'),
]
custom_imports = dict(
    allow_failed_imports=False,
    imports=[
        'mmdeform_upgrade',
        'mmdeform_upgrade.models.ssd',
    ],
)
load_from = 'work_dirs/ssd320_r50_cutouts/epoch_8.pth'
model = dict(backbone=dict(base_type='ResNet', init_cfg=None, targets='last:3', type='DeformUpgrade'))
param_scheduler = [
    dict(begin=0, by_epoch=False, end=15, start_factor=0.1, type='LinearLR'),
    dict(
        begin=0,
        by_epoch=True,
        end=2,
        gamma=0.1,
        milestones=[
            1,
        ],
        type='MultiStepLR',
    ),
]
train_cfg = dict(max_epochs=2, val_interval=1)
