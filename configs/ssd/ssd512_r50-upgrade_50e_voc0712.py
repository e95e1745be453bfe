# Table III: SSD512, the own baseline upgraded, 200 -> 50 epochs.
_base_ = './ssd512_r50_200e_voc0712.py'
model = dict(backbone=dict(type='DeformUpgrade', base_type='ResNet', targets='last:3', init_cfg=None))
load_from = 'work_dirs/ssd512_r50_200e_voc0712/epoch_200.pth'
train_cfg = dict(max_epochs=50)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=50, by_epoch=True, milestones=[33, 42], gamma=0.1)]
custom_hooks = [dict(type='DeformUpgradeHook')]
