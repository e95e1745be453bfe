# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What a run that stops for numbers that are not finite says."""

from __future__ import annotations

from mmengine.runner import find_latest_checkpoint

from ..errors import TrainingError, listed
from ..layers import upgraded_layers
from .network import bare_network

TAME_OFFSETS = (
    'Lower the learning rate of the offsets (optim_wrapper.offset_optimizer.lr; without one, '
    'optim_wrapper.paramwise_cfg.custom_keys=dict(conv_offset=dict(lr_mult=0.1))), clip gradients '
    '(optim_wrapper.clip_grad=dict(max_norm=35)), or warm up longer.'
)


def stop_for_weights(runner, iteration: int, broken: list[str]) -> None:
    """End a run whose weights ``broken`` are not finite."""
    layers = [
        layer for layer in upgraded_layers(bare_network(runner)) if any(k.startswith(f'{layer}.') for k in broken)
    ]
    rest = [key for key in broken if not any(key.startswith(f'{layer}.') for layer in layers)]
    titled = (('of the upgraded layers', layers), ('of others', rest))
    found = '; '.join(f'{title} {listed(names, 5)}' for title, names in titled if names)
    advice = 'OffsetLoggerHook(interval=1) names the layer whose offsets break first.'
    stop(runner, iteration, f'weights are not finite: {found}. {TAME_OFFSETS} {advice}')


def stop(runner, iteration: int, problem: str) -> None:
    """End a run, and say what it leaves to resume from."""
    last = find_latest_checkpoint(runner.work_dir)
    left = f'The last checkpoint is {last}.' if last else f'What was saved stays in {runner.work_dir}.'
    raise TrainingError(f'iteration {iteration}: {problem} {left}')
