# Table I: six layers deformable (res5+res4b20-22), trained from ImageNet weights (mAP 78.7 there).
_base_ = './faster-rcnn_r101-caffe-dc5-dcn1_4xb4-12e_voc0712.py'
model = dict(backbone=dict(targets='res5+res4b20-22'))
