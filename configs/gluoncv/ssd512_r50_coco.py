# GluonCV's ssd_512_resnet50_v1_coco (COCO AP 30.6, AP50 50.0, AP75 32.2 there); its anchors are not those of VOC.
_base_ = [
    '../_base_/models/gluoncv_ssd512_r50.py',
    '../_base_/datasets/gluoncv_coco_512.py',
    '../_base_/schedules/gluoncv_ssd_240e.py',
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
