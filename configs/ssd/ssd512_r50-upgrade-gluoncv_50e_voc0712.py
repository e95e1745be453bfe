# Table III: SSD512, GluonCV's baseline (80.1 there) upgraded, fine-tuned for 50 epochs.
_base_ = '../gluoncv/ssd512_r50_voc.py'
model = dict(backbone=dict(type='DeformUpgrade', base_type='ResNet', targets='last:3'))
load_from = 'checkpoints/ssd_512_resnet50_v1_voc-9c8b225a.params'
optim_wrapper = dict(optimizer=dict(lr=0.01))
train_cfg = dict(max_epochs=50)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=50, by_epoch=True, milestones=[33, 42], gamma=0.1)]
custom_hooks = [dict(type='DeformUpgradeHook')]
