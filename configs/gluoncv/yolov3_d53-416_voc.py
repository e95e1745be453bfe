# GluonCV's yolo3_darknet53_voc (VOC07 mAP 81.5 at 416 pixels there): give its .params as the baseline.
_base_ = [
    '../_base_/models/gluoncv_yolov3_d53.py',
    '../_base_/datasets/gluoncv_voc_416.py',
    '../_base_/schedules/gluoncv_yolo_200e.py',
    '../_base_/default_runtime.py',
]
model = dict(bbox_head=dict(num_classes=20))
