# VOC as GluonCV's YOLOv3 takes it: the pictures of gluoncv_voc_512.py, 608 pixels wide for training (the data
# preprocessor shrinks batches from there) and 416 for evaluation.
_base_ = './gluoncv_voc_512.py'

train_pipeline = _base_.train_pipeline
train_pipeline[4].update(scale=(608, 608))
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(416, 416))
_trainval = [dict(dataset, pipeline=train_pipeline) for dataset in _base_.train_dataloader.dataset.datasets]
train_dataloader = dict(dataset=dict(datasets=_trainval))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
