# The weights of yolov3_d53-416_coco.py at 320 pixels (COCO AP 33.6, AP50 54.1, AP75 35.8 there).
_base_ = './yolov3_d53-416_coco.py'
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(320, 320))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
