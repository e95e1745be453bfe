# The demo's detector: mmdet's FCOS of one level on a ResNet-18 of half width, cut after two stages (stride 8).
# benchmarks/demo/checkpoints/fcos_r18_shapes.pth was trained by
#     python -m benchmarks.camera shape-boxes --seeds 0 --out work_dirs/camera
# on 2 000 scenes of 128 px (there shape-boxes-fcos-r18w32s2-identity-2000-0.pth, here in float16). The same recipe
# stands here, for tools/train.py on folders of pictures.
_base_ = './_base_/shapes_r18.py'
default_scope = 'mmdet'

metainfo = dict(
    classes=('star', 'ring', 'cross', 'worm', 'crescent', 'arrow'),
    palette=[[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [213, 94, 0], [204, 121, 167]],
)
data_root = 'data/shapes'
dataset = dict(type='CocoDataset', data_root=data_root, metainfo=metainfo)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale_factor=1.0),  # mmdet's heads ask for the factor
    dict(type='LoadAnnotations', with_bbox=True),
    # CocoMetric takes the truth from here, so that it needs no path of its own
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances')),
]
train_dataloader = dict(
    dataset=dict(
        ann_file='train.json',
        data_prefix=dict(img='train/images/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    dataset=dict(ann_file='val.json', data_prefix=dict(img='val/images/'), pipeline=test_pipeline, **dataset),
)
test_dataloader = dict(
    dataset=dict(ann_file='test.json', data_prefix=dict(img='test/images/'), pipeline=test_pipeline, **dataset),
)
val_evaluator = dict(type='CocoMetric', metric='bbox')
test_evaluator = val_evaluator

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='SingleStageDetector',
    data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=8),
    bbox_head=dict(
        type='FCOSHead',
        num_classes=6,
        in_channels=64,
        feat_channels=64,
        stacked_convs=1,
        strides=[8],
        regress_ranges=((-1, 1e8),),
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        conv_bias=True,
        norm_cfg=norm_cfg,
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
    ),
    test_cfg=dict(
        nms_pre=300, min_bbox_size=0, score_thr=0.02, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100
    ),
)

param_scheduler = [
    dict(type='LinearLR', start_factor=0.025, by_epoch=False, begin=0, end=40),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=40, end=2000, by_epoch=False),
]
train_cfg = dict(max_iters=2000)
