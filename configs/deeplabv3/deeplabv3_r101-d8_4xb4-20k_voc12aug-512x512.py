# Table I, DeepLab on ResNet-101, VOC2012: no deformable layer (mIoU 69.7 there, by an earlier DeepLab).
_base_ = [
    __import__('mmdeform_upgrade').config.find_config('mmseg::deeplabv3/deeplabv3_r101-d8_4xb4-20k_voc12aug-512x512.py')
]
