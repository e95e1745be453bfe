# GluonCV's YOLOv3 on COCO: as on VOC, but 280 epochs with decays at 220 and 250.
_base_ = './gluoncv_yolo_200e.py'
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=2, by_epoch=True, convert_to_iter_based=True),
    dict(type='MultiStepLR', begin=0, end=280, by_epoch=True, milestones=[220, 250], gamma=0.1),
]
train_cfg = dict(max_epochs=280)
