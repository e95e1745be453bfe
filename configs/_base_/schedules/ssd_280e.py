# Table IV: 280 epochs, learning rate 0.01, decays where those of 240 epochs are.
_base_ = './ssd_240e.py'
optim_wrapper = dict(optimizer=dict(lr=0.01))
train_cfg = dict(max_epochs=280)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=280, by_epoch=True, milestones=[187, 233], gamma=0.1)]
