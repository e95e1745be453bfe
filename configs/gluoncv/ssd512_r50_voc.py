# GluonCV's ssd_512_resnet50_v1_voc (VOC07 mAP 80.1 there): give its .params as the baseline.
_base_ = [
    '../_base_/models/gluoncv_ssd512_r50.py',
    '../_base_/datasets/gluoncv_voc_512.py',
    '../_base_/schedules/gluoncv_ssd_240e.py',
    '../_base_/default_runtime.py',
]
