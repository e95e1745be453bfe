# The baseline with three layers upgraded (res5a,b,c).
_base_ = './deeplabv3_r101-d8-upgrade1_4xb4-5k_voc12aug-512x512.py'
model = dict(backbone=dict(targets='res5a,b,c'))
