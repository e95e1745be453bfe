# What docs/results/composite.md reports of a GPU, in the order of importance (tools/experiments/side_by_side.py).
_home, _ssd = 'work_dirs/composite', 'configs/composite/ssd512_r50_24e_cutouts'
_main = dict(config=f'{_ssd}.py', work_dir=f'{_home}/warped512', metric='pascal_voc/mAP')
plan = [
    dict(**_main),
    dict(config=f'{_ssd}-nowarp.py', work_dir=f'{_home}/plain512', metric='pascal_voc/mAP'),
    dict(config='configs/composite/deeplabv3_r50-d16_cutouts.py', work_dir=f'{_home}/segmentor', metric='mIoU'),
    dict(config='configs/composite/faster-rcnn_r50-caffe-dc5_12e_cutouts.py', work_dir=f'{_home}/detector2',
         metric='pascal_voc/mAP'),
    *(dict(**_main, arms=['upgraded'], targets=f'last:{depth}', variant=f'last{depth}') for depth in (1, 2, 6, 9)),
    dict(**_main, recipes='tools/experiments/composite512_recipes.py'),
    dict(**_main, seeds=[3, 4]),
    dict(config=f'{_ssd}-nowarp.py', work_dir=f'{_home}/plain512', metric='pascal_voc/mAP', seeds=[3, 4])
]
