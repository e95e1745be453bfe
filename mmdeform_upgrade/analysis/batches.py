# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Random input for whole networks, so that they can be measured without a data set."""

from __future__ import annotations

from typing import Any, Callable, Dict, List

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..layers import OffsetBranch


def random_batch(model: nn.Module, size: int, batch_size: int, device: str = 'cpu') -> Dict[str, Any]:
    """What a data loader would give to ``model.train_step``: square pictures with random labels.

    Args:
        model: one of mmdet's detectors, or of mmseg's segmentors.
        size: pixels of a side.
        batch_size: N.
        device: where the labels are put.

    Raises:
        ConfigError: the model is neither.
    """
    family = {c.__module__.split('.')[0] for c in type(model).__mro__}
    names = ('bbox_head', 'decode_head', 'roi_head')
    head = next((getattr(model, name) for name in names if hasattr(model, name)), None)
    classes = getattr(head, 'num_classes', None) or getattr(getattr(head, 'bbox_head', None), 'num_classes', None)
    if 'mmdet' in family and classes:
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(
            batch_size,
            [(3, size, size)] * batch_size,
            [8] * batch_size,
            classes,
            with_mask=bool(getattr(model, 'with_mask', False)),
            device=device,
        )
    if 'mmseg' in family and classes:
        return {
            'inputs': [torch.randint(0, 256, (3, size, size), dtype=torch.uint8) for _ in range(batch_size)],
            'data_samples': _masks(classes, size, batch_size, device),
        }
    raise ConfigError(
        f'{type(model).__name__} is no detector of mmdet and no segmentor of mmseg with a number of '
        'classes: random labels cannot be made for it'
    )


def _masks(classes: int, size: int, batch_size: int, device: str) -> List[Any]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(batch_size):
        sample = SegDataSample(metainfo={'img_shape': (size, size), 'ori_shape': (size, size)})
        sample.gt_sem_seg = PixelData(data=torch.randint(0, classes, (1, size, size), device=device))
        samples.append(sample)
    return samples


@torch.no_grad()
def scatter_offsets_(model: nn.Module, sigma: float, run: Callable[[], Any]) -> None:
    """Give every offset branch random weights such that its offsets spread by ``sigma`` pixels.

    At step 0 all offsets are zero, which reads memory in order; a timing should not rely on that.

    Args:
        model: the upgraded network.
        sigma: standard deviation, in pixels.
        run: runs the network once, on typical input.
    """

    def fit(branch: nn.Module, args: Any, output: Tensor) -> Tensor:
        factor = sigma / output.std().clamp_min(1e-12)
        branch.weight.mul_(factor)  # type: ignore[operator, union-attr]
        return output * factor

    hooks = []
    for module in model.modules():
        if isinstance(module, OffsetBranch):
            nn.init.normal_(module.weight)
            hooks.append(module.register_forward_hook(fit))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
