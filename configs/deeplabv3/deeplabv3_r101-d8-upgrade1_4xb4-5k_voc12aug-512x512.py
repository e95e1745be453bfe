# The baseline of this folder with one layer upgraded (res5c), fine-tuned for a quarter of its iterations.
_base_ = './deeplabv3_r101-d8_4xb4-20k_voc12aug-512x512.py'
custom_imports = dict(imports=['mmdeform_upgrade'], allow_failed_imports=False)
model = dict(pretrained=None, backbone=dict(type='DeformUpgrade', base_type='ResNetV1c', targets='res5c'))
load_from = 'work_dirs/deeplabv3_r101-d8_4xb4-20k_voc12aug-512x512/iter_20000.pth'
train_cfg = dict(max_iters=5000, val_interval=500)
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=5000, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=500))
custom_hooks = [dict(type='DeformUpgradeHook')]
