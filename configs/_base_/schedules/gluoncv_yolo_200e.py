# GluonCV's YOLOv3 log on VOC: SGD, learning rate 0.001, 2 epochs of warm-up, decays at 160 and 180, 64 pictures a step.
# The loss is a sum, as in mmdet's own YOLOv3 recipe, whose clipping it needs.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.001, momentum=0.9, weight_decay=5e-4),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=2, by_epoch=True, convert_to_iter_based=True),
    dict(type='MultiStepLR', begin=0, end=200, by_epoch=True, milestones=[160, 180], gamma=0.1),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=200, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
# 8 GPUs x 8 pictures
auto_scale_lr = dict(enable=False, base_batch_size=64)
