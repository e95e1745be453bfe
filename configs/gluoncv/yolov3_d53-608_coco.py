# The weights of yolov3_d53-416_coco.py at 608 pixels (COCO AP 37.0, AP50 58.2, AP75 40.1 there).
_base_ = './yolov3_d53-416_coco.py'
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(608, 608))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
