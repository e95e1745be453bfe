# GluonCV's SSD logs: SGD, learning rate 0.001, momentum 0.9, 240 epochs with decays at 160 and 200, 32 pictures a step.
_base_ = './ssd_240e.py'
optim_wrapper = dict(optimizer=dict(momentum=0.9))
