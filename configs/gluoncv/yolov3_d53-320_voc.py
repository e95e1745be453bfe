# The weights of yolov3_d53-416_voc.py at 320 pixels (VOC07 mAP 79.3 there).
_base_ = './yolov3_d53-416_voc.py'
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(320, 320))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
