# Table I, Faster R-CNN on ResNet-101 with a dilated res5, VOC07+12: no deformable layer (mAP 78.1 there).
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50-caffe-dc5.py',
    'mmdet::_base_/datasets/voc0712.py',
    '../_base_/schedules/voc_12e.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(depth=101, init_cfg=dict(checkpoint='open-mmlab://detectron2/resnet101_caffe')),
    roi_head=dict(bbox_head=dict(num_classes=20)),
)
train_dataloader = dict(batch_size=4, dataset=dict(times=1))
