# Table IV: SSD512, own baseline on COCO, learning rate 0.01 for 32 pictures a step; GluonCV's anchors for COCO.
_base_ = [
    '../_base_/models/ssd512_r50.py',
    '../_base_/datasets/gluoncv_coco_512.py',
    '../_base_/schedules/ssd_280e.py',
    '../_base_/default_runtime.py',
]
model = dict(
    bbox_head=dict(
        num_classes=80,
        anchor_generator=dict(
            min_sizes=[51.2, 133.12, 215.04, 296.96, 378.88, 460.8],
            max_sizes=[133.12, 215.04, 296.96, 378.88, 460.8, 542.72],
        ),
    )
)
