# First experiment of the paper's Table II: the baseline (VOC07 mAP 80.1 there).
_base_ = [
    '../_base_/models/ssd512_r50.py',
    '../_base_/datasets/voc0712_ssd512.py',
    '../_base_/schedules/ssd_240e.py',
    '../_base_/default_runtime.py',
]
