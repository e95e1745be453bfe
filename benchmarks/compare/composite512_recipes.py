# Recipes for benchmarks/compare/configs/ssd512_r50_24e_cutouts.py (1200 steps of 8 pictures, a quarter is 300), one change at a
# time from the paper's: a quarter of the epochs at the full rate, tenfold lower from 2/3 and from 5/6 of them on. The
# same at a third of the rate, where chance moves a fine-tune least.
_late = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=25),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=300, milestones=[270, 285], gamma=0.1),
]
_long_warm_up = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=6, milestones=[4, 5], gamma=0.1),
]
_changes = dict(
    offsets_x01=dict(offset_lr_mult=0.1),
    offsets_x10=dict(offset_lr_mult=10.0),
    offsets_x100=dict(offset_lr_mult=100.0),
    offsets_first=dict(offset_lr_mult=10.0, tune_hooks=[dict(type='OffsetsFirstHook', iterations=100)]),
    last1=dict(targets='last:1'),
    last2=dict(targets='last:2'),
    last6=dict(targets='last:6'),
    last9=dict(targets='last:9'),
    averaged=dict(tune_hooks=[dict(type='EMAHook', momentum=0.02)]),
    batch_norm_trained=dict(tune_changes=dict(model=dict(backbone=dict(norm_eval=False)))),
    eighth=dict(epoch_ratio=1 / 8),
    twelfth=dict(epoch_ratio=1 / 12),
)

recipes = dict(
    paper=dict(),
    **_changes,
    decays_late=dict(tune_changes=dict(param_scheduler=_late)),
    long_warm_up=dict(tune_changes=dict(param_scheduler=_long_warm_up)),
    rate_x03=dict(lr_mult=0.3),
    **{f'rate_x03_{name}': dict(lr_mult=0.3, **change) for name, change in _changes.items()},
    rate_x01=dict(lr_mult=0.1),
    rate_x01_offsets_x100=dict(lr_mult=0.1, offset_lr_mult=100.0),
    eighth_offsets_x10=dict(epoch_ratio=1 / 8, offset_lr_mult=10.0),
)
