# Third experiment of the paper's Table II: the baseline's last three 3x3 convolutions become deformable, and it is
# fine-tuned for 60 epochs (VOC07 mAP 81.0 there). Set load_from to your checkpoint of the first experiment.
_base_ = './ssd/ssd512_r50_240e_voc0712.py'
model = dict(backbone=dict(type='DeformUpgrade', base_type='ResNet', targets='last:3', init_cfg=None))
load_from = 'work_dirs/ssd512_r50_240e_voc0712/epoch_240.pth'
train_cfg = dict(max_epochs=60)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=60, by_epoch=True, milestones=[40, 50], gamma=0.1)]
custom_hooks = [dict(type='DeformUpgradeHook')]
