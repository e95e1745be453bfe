# The baseline of docs/results: SSD320 on ResNet-50 from ImageNet weights, 8 epochs on composites of Debian's cut-outs.
_base_ = [
    '../../../configs/_base_/models/ssd512_r50.py',
    '../../../configs/_base_/datasets/composed_voc.py',
    '../../../configs/_base_/default_runtime.py',
]

metainfo = dict(classes=('bird', 'fish', 'flower', 'fruit', 'mammal', 'tool', 'vegetable'), dataset_type=None)
dataset = dict(data_root='data/cutouts/VOCdevkit/', metainfo=metainfo)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)
model = dict(
    backbone=dict(frozen_stages=2, norm_eval=True, init_cfg=dict(checkpoint='data/resnet50_caffe_imagenet.pth')),
    bbox_head=dict(
        num_classes=7,
        anchor_generator=dict(
            input_size=320,
            min_sizes=[32.0, 64.0, 118.0, 172.0, 226.0, 280.0],
            max_sizes=[64.0, 118.0, 172.0, 226.0, 280.0, 308.0],
        ),
    ),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.004, momentum=0.9, weight_decay=5e-4),
    clip_grad=dict(max_norm=20, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=60),
    dict(type='MultiStepLR', begin=0, end=8, by_epoch=True, milestones=[5, 7], gamma=0.1),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=8, val_interval=4)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1, save_best=None))
randomness = dict(seed=0)
