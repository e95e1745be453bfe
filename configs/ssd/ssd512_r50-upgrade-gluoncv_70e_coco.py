# Table IV: SSD512, GluonCV's baseline (30.6 there) upgraded, fine-tuned for 70 epochs.
_base_ = '../gluoncv/ssd512_r50_coco.py'
model = dict(backbone=dict(type='DeformUpgrade', base_type='ResNet', targets='last:3'))
load_from = 'checkpoints/ssd_512_resnet50_v1_coco-c4835162.params'
optim_wrapper = dict(optimizer=dict(lr=0.01))
train_cfg = dict(max_epochs=70)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=70, by_epoch=True, milestones=[47, 58], gamma=0.1)]
custom_hooks = [dict(type='DeformUpgradeHook')]
