# Table IV: SSD512, the own baseline upgraded, 280 -> 70 epochs.
_base_ = './ssd512_r50_280e_coco.py'
model = dict(backbone=dict(type='DeformUpgrade', base_type='ResNet', targets='last:3', init_cfg=None))
load_from = 'work_dirs/ssd512_r50_280e_coco/epoch_280.pth'
train_cfg = dict(max_epochs=70)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=70, by_epoch=True, milestones=[47, 58], gamma=0.1)]
custom_hooks = [dict(type='DeformUpgradeHook')]
