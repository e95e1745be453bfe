# The main setting of docs/results/composite.md: 12 epochs in bfloat16, every arm with the same batches.
_base_ = ['ssd320_r50_cutouts.py']

dataset = dict(data_root='data/composite/warped/VOCdevkit/')
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)

param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=60),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 10], gamma=0.1)
]
train_cfg = dict(max_epochs=12, val_interval=2)
custom_hooks = [dict(type='BFloat16Hook'), dict(type='ExactResumeHook')]
default_hooks = dict(checkpoint=dict(interval=3, max_keep_ckpts=1, save_best=None))
