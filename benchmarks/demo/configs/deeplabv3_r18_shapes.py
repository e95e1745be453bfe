# A segmentor for the generated shapes (benchmarks/datasets/compose_shapes.py): mmseg's DeepLabV3 on a narrow
# ResNet-18, from scratch, by iterations.
_base_ = [
    '../../../configs/_base_/datasets/composed_voc_seg.py',
    *(
        __import__('mmdeform_upgrade').config.find_config(f'mmseg::_base_/{name}.py')
        for name in ('models/deeplabv3_r50-d8', 'schedules/schedule_20k', 'default_runtime')
    ),
]
custom_imports = dict(imports=['mmdeform_upgrade'], allow_failed_imports=False)

metainfo = dict(
    classes=('background', 'star', 'ring', 'cross', 'worm', 'crescent', 'arrow'),
    palette=[[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128]],
)
dataset = dict(data_root='data/shapes/VOCdevkit/', metainfo=metainfo)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)
# The background is nearly nine tenths of all pixels.
loss = dict(class_weight=[0.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    pretrained=None,
    backbone=dict(depth=18, base_channels=16, stem_channels=16),
    decode_head=dict(in_channels=128, channels=64, dilations=(1, 2, 4, 6), num_classes=7, loss_decode=loss),
    auxiliary_head=dict(in_channels=64, channels=32, num_classes=7, loss_decode=loss),
)

optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=0.002, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=40),
    dict(type='PolyLR', eta_min=1e-5, power=0.9, begin=40, end=400, by_epoch=False),
]
train_cfg = dict(max_iters=400, val_interval=100)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=100, max_keep_ckpts=1))
randomness = dict(seed=0)
