# Table I: one layer deformable (res5c), trained from ImageNet weights (mIoU 73.9 there).
_base_ = './deeplabv3_r101-d8_4xb4-20k_voc12aug-512x512.py'
custom_imports = dict(imports=['mmdeform_upgrade'], allow_failed_imports=False)
model = dict(backbone=dict(type='DeformUpgrade', base_type='ResNetV1c', targets='res5c'))
