# Table I: one layer deformable (res5c), trained from ImageNet weights (mAP 78.6 there).
_base_ = './faster-rcnn_r101-caffe-dc5_4xb4-12e_voc0712.py'
custom_imports = dict(imports=['mmdeform_upgrade'], allow_failed_imports=False)
model = dict(backbone=dict(type='DeformUpgrade', base_type='ResNet', targets='res5c'))
