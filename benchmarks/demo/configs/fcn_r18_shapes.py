# The demo's baseline: mmseg's FCNHead of one 1x1 convolution on a ResNet-18 of half width, cut after two stages
# (stride 8, it sees 99 px). benchmarks/demo/checkpoints/fcn_r18_shapes.pth was trained, in float32 on a GPU, by
#     python -m benchmarks.camera shapes --seeds 0 --out work_dirs/camera
# on 2 000 scenes of 128 px (there shapes-r18w32s2-identity-4000-0.pth; 42.7 mIoU on the test scenes). The same recipe
# stands here, for tools/train.py on folders of pictures.
_base_ = './_base_/shapes_r18.py'
default_scope = 'mmseg'

metainfo = dict(
    classes=('background', 'star', 'ring', 'cross', 'worm', 'crescent', 'arrow'),
    palette=[[0, 0, 0], [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [213, 94, 0], [204, 121, 167]],
)
data_root = 'data/shapes'
dataset = dict(type='BaseSegDataset', data_root=data_root, metainfo=metainfo, img_suffix='.jpg', seg_map_suffix='.png')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path='train/images', seg_map_path='train/labels'), pipeline=train_pipeline, **dataset
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path='val/images', seg_map_path='val/labels'),
        pipeline=test_pipeline,
        **dataset,
    ),
)
test_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path='test/images', seg_map_path='test/labels'),
        pipeline=test_pipeline,
        **dataset,
    ),
)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size_divisor=8, pad_val=0, seg_pad_val=255),
    decode_head=dict(
        type='FCNHead',
        in_channels=64,
        in_index=0,
        channels=64,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=7,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    test_cfg=dict(mode='whole'),
)

param_scheduler = [
    dict(type='LinearLR', start_factor=0.0125, by_epoch=False, begin=0, end=80),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=80, end=4000, by_epoch=False),
]
train_cfg = dict(max_iters=4000)
