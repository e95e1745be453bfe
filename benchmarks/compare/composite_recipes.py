# Recipes for benchmarks/compare/configs/ssd256_r50_12e_cutouts.py (600 steps of 8 pictures, a quarter is 150), one change at a
# time from the paper's: a quarter of the epochs, at the full rate until 2/3 of them, tenfold lower from there and again
# from 5/6 on. The same at a third of the rate, where chance moves a fine-tune least.
def _warm_up(end):
    return dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=end)


def _falls(*milestones):
    return dict(type='MultiStepLR', by_epoch=False, begin=0, end=150, milestones=[*milestones], gamma=0.1)


_changes = dict(
    offsets_x01=dict(offset_lr_mult=0.1),
    offsets_x10=dict(offset_lr_mult=10.0),
    offsets_first=dict(offset_lr_mult=10.0, tune_hooks=[dict(type='OffsetsFirstHook', iterations=50)]),
    decays_late=dict(tune_changes=dict(param_scheduler=[_warm_up(13), _falls(135, 143)])),
    long_warm_up=dict(tune_changes=dict(param_scheduler=[_warm_up(50), _falls(100, 125)])),
    batch_norm_trained=dict(tune_changes=dict(model=dict(backbone=dict(norm_eval=False)))),
    averaged=dict(tune_hooks=[dict(type='EMAHook', momentum=0.02)]),
    last1=dict(targets='last:1'),
    last6=dict(targets='last:6'),
    last9=dict(targets='last:9'),
    # Of 12 epochs an eighth is one and a half: the whole numbers beside it.
    sixth=dict(epoch_ratio=1 / 6),
    twelfth=dict(epoch_ratio=1 / 12),
)

recipes = dict(
    paper=dict(),
    **_changes,
    one_decay=dict(tune_changes=dict(param_scheduler=[_warm_up(13), _falls(100)])),
    rate_x03=dict(lr_mult=0.3),
    **{f'rate_x03_{name}': dict(lr_mult=0.3, **change) for name, change in _changes.items()},
    rate_x01=dict(lr_mult=0.1),
    rate_x01_offsets_x100=dict(lr_mult=0.1, offset_lr_mult=100.0),
    twelfth_rate_x03_offsets_x10=dict(epoch_ratio=1 / 12, lr_mult=0.3, offset_lr_mult=10.0),
)
