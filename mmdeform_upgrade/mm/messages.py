# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What several hooks say when a run goes wrong."""

from __future__ import annotations

from mmengine.runner import find_latest_checkpoint

TAME_OFFSETS = (
    'Lower the learning rate of the offsets (optim_wrapper.paramwise_cfg=dict(custom_keys=dict('
    'conv_offset=dict(lr_mult=0.1)))), clip gradients (optim_wrapper.clip_grad=dict(max_norm=35)), or warm up '
    'longer.'
)


def what_is_left(runner) -> str:
    """What a run that stops leaves to resume from."""
    last = find_latest_checkpoint(runner.work_dir)
    return f'The last checkpoint is {last}.' if last else f'What was saved stays in {runner.work_dir}.'
