# The main setting of docs/results.md on a GPU: 512 pixels, 24 epochs, the fine-tunes 6.
_base_ = ['ssd320_r50_cutouts.py']

dataset = dict(data_root='data/composite/warped512/VOCdevkit/')
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)
model = dict(
    bbox_head=dict(
        anchor_generator=dict(
            input_size=512,
            min_sizes=[51.2, 102.4, 189.4, 276.4, 363.52, 450.6],
            max_sizes=[102.4, 189.4, 276.4, 363.52, 450.6, 492],
        )
    )
)

param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', begin=0, end=24, by_epoch=True, milestones=[16, 20], gamma=0.1),
]
train_cfg = dict(max_epochs=24, val_interval=8)
custom_imports = dict(imports=['benchmarks.compare.cpu_head'])
custom_hooks = [dict(type='BFloat16Hook'), dict(type='RunGuardHook'), dict(type='CPUHeadHook')]
default_hooks = dict(checkpoint=dict(interval=12, max_keep_ckpts=1, save_best=None, save_optimizer=False))
