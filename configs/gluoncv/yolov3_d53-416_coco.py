# GluonCV's yolo3_darknet53_coco (COCO AP 36.0, AP50 57.2, AP75 38.7 at 416 pixels there).
_base_ = [
    '../_base_/models/gluoncv_yolov3_d53.py',
    '../_base_/datasets/gluoncv_coco_416.py',
    '../_base_/schedules/gluoncv_yolo_280e.py',
    '../_base_/default_runtime.py',
]
