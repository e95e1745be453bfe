# DeepLabV3, R50: published baseline 79.09 mIoU.
_base_ = [
    __import__('mmdeform_upgrade').config.find_config(
        'mmseg::deeplabv3/deeplabv3_r50-d8_4xb2-40k_cityscapes-512x1024.py'
    )
]
custom_imports = dict(imports=['mmdeform_upgrade'], allow_failed_imports=False)
model = dict(backbone=dict(type='DeformUpgrade', base_type='ResNetV1c', targets='res3+res4+res5'), pretrained=None)
load_from = 'https://download.openmmlab.com/mmsegmentation/v0.5/deeplabv3/deeplabv3_r50-d8_512x1024_40k_cityscapes/deeplabv3_r50-d8_512x1024_40k_cityscapes_20200605_022449-acadc2f8.pth'
train_cfg = dict(max_iters=10000, val_interval=1000)
param_scheduler = [dict(type='PolyLR', eta_min=0.0001, power=0.9, begin=0, end=10000, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=1000))
optim_wrapper = dict(constructor='OffsetOptimizerConstructor', offset_optimizer=dict(type='Adam', lr=0.002))
custom_hooks = [dict(type='RunGuardHook'), dict(type='DeformUpgradeHook')]
