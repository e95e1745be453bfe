# The baseline with six layers upgraded (res5+res4b20-22).
_base_ = './faster-rcnn_r101-caffe-dc5-upgrade1_4xb4-3e_voc0712.py'
model = dict(backbone=dict(targets='res5+res4b20-22'))
