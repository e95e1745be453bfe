_base_ = ['ssd320_r50_cutouts.py']
load_from = 'work_dirs/ssd320_r50_cutouts/epoch_8.pth'
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
