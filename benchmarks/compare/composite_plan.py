# What docs/results/composite.md reports of a GPU, in the order of importance (benchmarks/compare/run_side_by_side.py).
_home, _ssd = 'work_dirs/composite', 'benchmarks/compare/configs/ssd512_r50_24e_cutouts'
_main = dict(config=f'{_ssd}.py', work_dir=f'{_home}/warped512', metric='pascal_voc/mAP')
_plain = dict(config=f'{_ssd}-nowarp.py', work_dir=f'{_home}/plain512', metric='pascal_voc/mAP')
_segmentor = dict(
    config='benchmarks/compare/configs/deeplabv3_r50-d16_cutouts.py', work_dir=f'{_home}/segmentor', metric='mIoU'
)
_recipes = dict(**_main, recipes='benchmarks/compare/composite512_recipes.py')
_third = dict(lr_mult=0.3, variant='rate_x03')
plan = [
    dict(**_main),
    dict(**_plain),
    dict(**_main, **_third, arms=['control', 'upgraded']),
    dict(**_recipes, only=['last1', 'last2', 'last6', 'last9', 'eighth', 'rate_x03_offsets_x10', 'rate_x03_eighth']),
    dict(**_segmentor),
    dict(**_main, seeds=[3, 4]),
    dict(**_main, **_third, arms=['control', 'upgraded'], seeds=[3, 4]),
    dict(**_plain, **_third, arms=['control', 'upgraded']),
    dict(
        **_recipes,
        only=[
            'offsets_x10',
            'offsets_x100',
            'offsets_first',
            'rate_x03_last1',
            'rate_x03_last6',
            'rate_x03_last9',
            'rate_x03_offsets_x100',
            'averaged',
            'batch_norm_trained',
            'decays_late',
        ],
    ),
    dict(**_plain, seeds=[3, 4]),
    dict(**_recipes),
]
