# Table I: six layers deformable (res5+res4b20-22), trained from ImageNet weights (mIoU 74.8 there).
_base_ = './deeplabv3_r101-d8-dcn1_4xb4-20k_voc12aug-512x512.py'
model = dict(backbone=dict(targets='res5+res4b20-22'))
