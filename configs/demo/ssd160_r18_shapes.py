# The demo's baseline: a small SSD on a narrow ResNet-18, trained from scratch on generated deformable shapes
# (tools/dataset_tools/compose_shapes.py), VOC layout under data/shapes/VOCdevkit.
_base_ = ['../_base_/models/ssd512_r50.py', '../_base_/default_runtime.py']

classes = ('star', 'ring', 'cross', 'worm', 'crescent', 'arrow')
model = dict(
    data_preprocessor=dict(mean=[114.0, 114.0, 114.0], std=[58.0, 58.0, 58.0]),
    backbone=dict(depth=18, base_channels=32, out_indices=(1, 2, 3), style='pytorch', init_cfg=None),
    neck=dict(in_channels=(64, 128, 256), out_channels=(128, ), min_channels=64),
    bbox_head=dict(
        num_classes=6,
        in_channels=(64, 128, 256, 128),
        anchor_generator=dict(
            input_size=160,
            strides=[8, 16, 32, 53],
            ratios=[[2], [2, 3], [2, 3], [2]],
            min_sizes=[24, 40, 64, 92],
            max_sizes=[40, 64, 92, 130])))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='MinIoURandomCrop', min_ious=(0.5, 0.7, 0.9), min_crop_size=0.5),
    dict(type='Resize', scale=(160, 160), keep_ratio=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 160), keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
dataset = dict(
    type='VOCDataset',
    data_root='data/shapes/VOCdevkit/',
    data_prefix=dict(sub_data_root='VOC2007/'),
    metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **dataset,
        ann_file='VOC2007/ImageSets/Main/train.txt',
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset, ann_file='VOC2007/ImageSets/Main/val.txt', test_mode=True, pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=16,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset, ann_file='VOC2007/ImageSets/Main/test.txt', test_mode=True, pipeline=test_pipeline))
val_evaluator = dict(type='VOCMetric', metric='mAP', eval_mode='area')
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=5e-4), type='OptimWrapper',
                     clip_grad=dict(max_norm=10, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', begin=0, end=24, by_epoch=True, milestones=[16, 20], gamma=0.1)
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=24, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=24, save_best='pascal_voc/mAP', rule='greater'))
randomness = dict(seed=0)
