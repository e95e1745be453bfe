# Table I: three layers deformable (res5a,b,c), trained from ImageNet weights (mAP 78.6 there).
_base_ = './faster-rcnn_r101-caffe-dc5-dcn1_4xb4-12e_voc0712.py'
model = dict(backbone=dict(targets='res5a,b,c'))
