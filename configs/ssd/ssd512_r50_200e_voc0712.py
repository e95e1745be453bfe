# Table III: SSD512, own baseline on VOC07+12, learning rate 0.01 for 32 pictures a step.
_base_ = './ssd512_r50_240e_voc0712.py'
optim_wrapper = dict(optimizer=dict(lr=0.01))
train_cfg = dict(max_epochs=200)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=200, by_epoch=True, milestones=[133, 167], gamma=0.1)]
