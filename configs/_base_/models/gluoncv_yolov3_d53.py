# YOLOv3 on Darknet-53: the architecture of GluonCV's yolo3_darknet53 (gluoncv/model_zoo/yolo/yolo3.py), which mmdet's
# matches layer by layer; its normalisation, loss and thresholds.
model = dict(
    type='YOLOV3',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        # 320 to 608 pixels, another size every 10 iterations
        batch_augments=[dict(type='BatchSyncRandomResize', random_size_range=(320, 608), interval=10)],
    ),
    backbone=dict(type='Darknet', depth=53, out_indices=(3, 4, 5), norm_eval=False),
    neck=dict(type='YOLOV3Neck', num_scales=3, in_channels=[1024, 512, 256], out_channels=[512, 256, 128]),
    bbox_head=dict(
        type='YOLOV3Head',
        num_classes=80,
        in_channels=[512, 256, 128],
        out_channels=[1024, 512, 256],
        anchor_generator=dict(
            type='YOLOAnchorGenerator',
            base_sizes=[
                [(116, 90), (156, 198), (373, 326)],
                [(30, 61), (62, 45), (59, 119)],
                [(10, 13), (16, 30), (33, 23)],
            ],
            strides=[32, 16, 8],
        ),
        bbox_coder=dict(type='YOLOBBoxCoder'),
        featmap_strides=[32, 16, 8],
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0, reduction='sum'),
        loss_conf=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0, reduction='sum'),
        # GluonCV weighs centre and size by 2 - area; 2 is that of small objects.
        loss_xy=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=2.0, reduction='sum'),
        loss_wh=dict(type='L1Loss', loss_weight=2.0, reduction='sum'),
    ),
    train_cfg=dict(
        # 0.7 is GluonCV's ignore_iou_thresh: of predicted boxes there, of anchors here.
        assigner=dict(type='GridAssigner', pos_iou_thr=0.7, neg_iou_thr=0.7, min_pos_iou=0)
    ),
    # mmdet thresholds objectness and class score one by one and multiplies them afterwards, so all that GluonCV keeps
    # (a product above 0.01) is kept, and some detections below 0.01 follow. nms_pre cuts by the class score alone: no cut.
    # split_thr=1: class by class, see gluoncv_ssd512_r50.py.
    test_cfg=dict(
        nms_pre=100000,
        min_bbox_size=0,
        score_thr=0.01,
        conf_thr=0.01,
        nms=dict(type='nms', iou_threshold=0.45, split_thr=1),
        max_per_img=100,
    ),
)
