# The baseline with six layers upgraded (res5+res4b20-22).
_base_ = './deeplabv3_r101-d8-upgrade1_4xb4-5k_voc12aug-512x512.py'
model = dict(backbone=dict(targets='res5+res4b20-22'))
