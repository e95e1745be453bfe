# Table I, DeepLab on ResNet-101, VOC2012: no deformable layer (mIoU 69.7 there, by an earlier DeepLab).
# 'mmseg::deeplabv3/...' would be shorter, but MMEngine looks for it under the name mmsegmentation, which
# onedl-mmsegmentation does not have.
_base_ = [__import__('mmseg').__path__[0] + '/.mim/configs/deeplabv3/deeplabv3_r101-d8_4xb4-20k_voc12aug-512x512.py']
