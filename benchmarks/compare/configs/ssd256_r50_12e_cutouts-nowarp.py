# The same on objects that were only scaled and mirrored: geometric warps favour deformable sampling.
_base_ = ['ssd256_r50_12e_cutouts.py']

dataset = dict(data_root='data/composite/plain/VOCdevkit/')
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)
