# SSD512 on ResNet-50: the architecture of GluonCV's ssd_512_resnet50_v1_voc
# (gluoncv/model_zoo/ssd/presets.py, nn/feature.py), layer by layer, so that its weights fit.
model = dict(
    type='SingleStageDetector',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[103.530, 116.280, 123.675],
        std=[1.0, 1.0, 1.0],
        bgr_to_rgb=False,
        pad_size_divisor=1,
    ),
    backbone=dict(
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='caffe',
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://detectron2/resnet50_caffe'),
    ),
    neck=dict(type='WideSSDNeck', in_channels=(1024, 2048), out_channels=(512, 512, 256, 256)),
    bbox_head=dict(
        type='PredictableSSDHead',
        num_classes=20,
        in_channels=(1024, 2048, 512, 512, 256, 256),
        anchor_generator=dict(
            type='SSDAnchorGenerator',
            scale_major=False,
            input_size=512,
            strides=[16, 32, 64, 128, 256, 512],
            ratios=[[2], [2, 3], [2, 3], [2, 3], [2], [2]],
            min_sizes=[51.2, 102.4, 189.4, 276.4, 363.52, 450.6],
            max_sizes=[102.4, 189.4, 276.4, 363.52, 450.6, 492],
        ),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            clip_border=False,
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[0.1, 0.1, 0.2, 0.2],
        ),
    ),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.0,
            ignore_iof_thr=-1,
            gt_max_assign_all=False,
        ),
        sampler=dict(type='PseudoSampler'),
        smoothl1_beta=1.0,
        allowed_border=-1,
        pos_weight=-1,
        neg_pos_ratio=3,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=400, nms=dict(type='nms', iou_threshold=0.45), min_bbox_size=0, score_thr=0.01, max_per_img=100
    ),
)
