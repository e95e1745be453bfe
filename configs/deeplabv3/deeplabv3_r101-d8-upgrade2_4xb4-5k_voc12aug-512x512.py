# The baseline with two layers upgraded (res5b,c).
_base_ = './deeplabv3_r101-d8-upgrade1_4xb4-5k_voc12aug-512x512.py'
model = dict(backbone=dict(targets='res5b,c'))
