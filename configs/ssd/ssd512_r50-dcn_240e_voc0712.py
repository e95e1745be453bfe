# Second experiment of the paper's Table II: the deformable network trained from ImageNet weights (VOC07 mAP 80.9).
_base_ = './ssd512_r50_240e_voc0712.py'
model = dict(backbone=dict(type='DeformUpgrade', base_type='ResNet', targets='last:3'))
