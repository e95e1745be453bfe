# A segmentor on the composites of Debian's cut-outs: mmseg's DeepLabV3 on ResNet-50 from ImageNet weights, stride 16.
_base_ = [
    '../../../configs/_base_/datasets/composed_voc_seg.py',
    *(
        __import__('mmdeform_upgrade').config.find_config(f'mmseg::_base_/{name}.py')
        for name in ('models/deeplabv3_r50-d8', 'schedules/schedule_20k', 'default_runtime')
    ),
]
custom_imports = dict(imports=['mmdeform_upgrade'], allow_failed_imports=False)

metainfo = dict(
    classes=('background', 'bird', 'fish', 'flower', 'fruit', 'mammal', 'tool', 'vegetable'),
    palette=[
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
        [0, 128, 128],
        [128, 128, 128],
    ],
)
dataset = dict(data_root='data/composite/warped/VOCdevkit/', metainfo=metainfo)
train_dataloader = dict(batch_size=8, dataset=dataset)
val_dataloader = dict(batch_size=8, dataset=dataset)
test_dataloader = dict(batch_size=8, dataset=dataset)

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False, size=(256, 256)),
    pretrained=None,
    backbone=dict(
        type='ResNet',
        style='caffe',
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        frozen_stages=2,
        norm_cfg=norm_cfg,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='data/resnet50_caffe_imagenet.pth'),
    ),
    decode_head=dict(channels=128, dilations=(1, 3, 6, 9), num_classes=8, norm_cfg=norm_cfg),
    auxiliary_head=dict(num_classes=8, channels=64, norm_cfg=norm_cfg),
)

optim_wrapper = dict(optimizer=dict(lr=0.005))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=5e-5, power=0.9, begin=50, end=600, by_epoch=False),
]
train_cfg = dict(max_iters=600, val_interval=100)
custom_hooks = [
    dict(type='BFloat16Hook', parts=['backbone', 'decode_head', 'auxiliary_head']),
    dict(type='RunGuardHook'),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=100, max_keep_ckpts=1))
randomness = dict(seed=0)
