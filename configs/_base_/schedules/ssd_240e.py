# The paper's Table II: SGD, learning rate 0.001, momentum 0.8, 240 epochs with decays at 160 and 200.
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.001, momentum=0.8, weight_decay=5e-4))
param_scheduler = [dict(type='MultiStepLR', begin=0, end=240, by_epoch=True, milestones=[160, 200], gamma=0.1)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=240, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
# 4 GPUs x 8 pictures
auto_scale_lr = dict(enable=False, base_batch_size=32)
