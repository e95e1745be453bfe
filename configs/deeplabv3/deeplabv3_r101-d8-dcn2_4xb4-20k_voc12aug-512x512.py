# Table I: two layers deformable (res5b,c), trained from ImageNet weights (mIoU 74.8 there).
_base_ = './deeplabv3_r101-d8-dcn1_4xb4-20k_voc12aug-512x512.py'
model = dict(backbone=dict(targets='res5b,c'))
