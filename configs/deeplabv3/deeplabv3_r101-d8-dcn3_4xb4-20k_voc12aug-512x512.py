# Table I: three layers deformable (res5a,b,c), trained from ImageNet weights (mIoU 75.2 there).
_base_ = './deeplabv3_r101-d8-dcn1_4xb4-20k_voc12aug-512x512.py'
model = dict(backbone=dict(targets='res5a,b,c'))
