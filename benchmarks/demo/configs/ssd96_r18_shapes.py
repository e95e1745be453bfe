# The demo's baseline: a small SSD on a narrow ResNet-18, trained from scratch on generated deformable shapes
# (benchmarks/datasets/compose_shapes.py).
_base_ = [
    '../../../configs/_base_/models/ssd512_r50.py',
    '../../../configs/_base_/datasets/composed_voc.py',
    '../../../configs/_base_/default_runtime.py',
]

metainfo = dict(classes=('star', 'ring', 'cross', 'worm', 'crescent', 'arrow'), dataset_type=None)
dataset = dict(data_root='data/shapes/VOCdevkit/', metainfo=metainfo)
train_dataloader = dict(batch_size=16, dataset=dataset)
val_dataloader = dict(batch_size=16, dataset=dataset)
test_dataloader = dict(batch_size=16, dataset=dataset)
model = dict(
    data_preprocessor=dict(mean=[114.0, 114.0, 114.0], std=[58.0, 58.0, 58.0]),
    backbone=dict(depth=18, base_channels=32, out_indices=(1, 2, 3), style='pytorch', init_cfg=None),
    neck=dict(in_channels=(64, 128, 256), out_channels=(128,), min_channels=64),
    bbox_head=dict(
        num_classes=6,
        in_channels=(64, 128, 256, 128),
        anchor_generator=dict(
            input_size=96,
            strides=[8, 16, 32, 48],
            ratios=[[2], [2], [2], [2]],
            min_sizes=[28.0, 38.0, 52.0, 68.0],
            max_sizes=[38.0, 52.0, 68.0, 84.0],
        ),
    ),
)

optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.0015, weight_decay=0.05), clip_grad=dict(max_norm=10)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', begin=0, end=24, by_epoch=True, milestones=[16, 20], gamma=0.1),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=24, val_interval=2)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=1, max_keep_ckpts=1, save_best=None))
randomness = dict(seed=0)
