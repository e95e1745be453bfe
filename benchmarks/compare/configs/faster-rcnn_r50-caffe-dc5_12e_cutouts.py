# A second detector on the same data as ssd256_r50_12e_cutouts.py: Faster R-CNN with a dilated res5, reduced to 256
# channels for the heads, and sized for a CPU.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50-caffe-dc5.py',
    '../../../configs/_base_/datasets/composed_voc.py',
    '../../../configs/_base_/default_runtime.py',
]

metainfo = dict(classes=('bird', 'fish', 'flower', 'fruit', 'mammal', 'tool', 'vegetable'), dataset_type=None)
dataset = dict(data_root='data/composite/warped/VOCdevkit/', metainfo=metainfo)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)
model = dict(
    backbone=dict(frozen_stages=2, init_cfg=dict(checkpoint='data/resnet50_caffe_imagenet.pth')),
    neck=dict(
        type='ChannelMapper',
        in_channels=[2048],
        out_channels=256,
        kernel_size=1,
        norm_cfg=dict(type='GN', num_groups=32),
        act_cfg=dict(type='ReLU'),
    ),
    rpn_head=dict(in_channels=256, feat_channels=256, anchor_generator=dict(scales=[1, 2, 4, 8, 16])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=256, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=256, fc_out_channels=512, num_classes=7),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=1000, max_per_img=300), rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.008, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=10, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 10], gamma=0.1),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=3)
custom_hooks = [
    dict(type='BFloat16Hook', parts=['backbone', 'neck', 'rpn_head', 'roi_head.bbox_head']),
    dict(type='RunGuardHook'),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=3, max_keep_ckpts=1, save_best=None))
randomness = dict(seed=0)
