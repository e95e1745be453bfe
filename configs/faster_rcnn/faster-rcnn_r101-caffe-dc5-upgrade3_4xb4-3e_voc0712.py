# The baseline with three layers upgraded (res5a,b,c).
_base_ = './faster-rcnn_r101-caffe-dc5-upgrade1_4xb4-3e_voc0712.py'
model = dict(backbone=dict(targets='res5a,b,c'))
