# COCO 2017 with the pictures of gluoncv_voc_416.py.
_base_ = './gluoncv_coco_512.py'

train_pipeline = _base_.train_pipeline
train_pipeline[4].update(scale=(608, 608))
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(416, 416))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
