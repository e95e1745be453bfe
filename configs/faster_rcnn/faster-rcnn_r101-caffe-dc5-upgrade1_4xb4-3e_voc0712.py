# The baseline of this folder with one layer upgraded (res5c), fine-tuned for a quarter of its epochs.
_base_ = './faster-rcnn_r101-caffe-dc5_4xb4-12e_voc0712.py'
custom_imports = dict(imports=['mmdeform_upgrade'], allow_failed_imports=False)
model = dict(backbone=dict(type='DeformUpgrade', base_type='ResNet', targets='res5c', init_cfg=None))
load_from = 'work_dirs/faster-rcnn_r101-caffe-dc5_4xb4-12e_voc0712/epoch_12.pth'
train_cfg = dict(max_epochs=3)
# A decay at 2 epochs, and one at 2.5, in MMEngine's terms: each is the first step of a scheduler that begins there.
_decay = dict(type='MultiStepLR', end=3, by_epoch=True, convert_to_iter_based=True, milestones=[0], gamma=0.1)
param_scheduler = [dict(begin=2.0, **_decay), dict(begin=2.5, **_decay)]
custom_hooks = [dict(type='DeformUpgradeHook')]
