# The main setting of docs/results.md: 256 pixels, 12 epochs, in bfloat16, every arm with the same batches.
_base_ = ['ssd320_r50_cutouts.py']

dataset = dict(data_root='data/composite/warped/VOCdevkit/')
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)
# One level less: the fifth map is a single pixel already.
model = dict(
    neck=dict(out_channels=(512, 512, 256)),
    bbox_head=dict(
        in_channels=(1024, 2048, 512, 512, 256),
        anchor_generator=dict(
            input_size=256,
            strides=[16, 32, 64, 128, 256],
            ratios=[[2], [2, 3], [2, 3], [2, 3], [2]],
            min_sizes=[25.6, 51.2, 94.4, 137.6, 180.8],
            max_sizes=[51.2, 94.4, 137.6, 180.8, 224.0],
        ),
    ),
)

param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 10], gamma=0.1),
]
train_cfg = dict(max_epochs=12, val_interval=2)
custom_hooks = [dict(type='BFloat16Hook'), dict(type='RunGuardHook')]
default_hooks = dict(checkpoint=dict(interval=3, max_keep_ckpts=1, save_best=None))
