# VOC as GluonCV's SSD evaluates it: 512x512, interpolation by direction.
_base_ = './voc0712_ssd512.py'

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeByDirection', scale=(512, 512)),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
