# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""mmcv's compiled operators against those that stand in for them, inside whole detectors with random weights.

    python -m benchmarks.operator.mmcv_ops --size 320 320 --repeats 3

For each detector: how far apart detections, losses and gradients are, and the milliseconds of CPU time (one thread)
spent in operators, of all that inference (one image) and a training step (two images) take. Needs a compiled mmcv.
"""

import argparse
import importlib
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from benchmarks.timing import conditions
from mmdeform_upgrade.mm import mmcv_ops

DETECTORS = {
    'SSD300 VGG-16': 'ssd/ssd300_coco.py',
    'RetinaNet R50-FPN': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'FCOS R50-FPN': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSS R50-FPN': 'atss/atss_r50_fpn_1x_coco.py',
    'RTMDet-tiny': 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'Faster R-CNN R50-FPN': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'Cascade R-CNN R50-FPN': 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'Mask R-CNN R50-FPN': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
}
NAMES = ('nms', 'softnms', 'nms_match', 'roi_align_forward', 'roi_align_backward')


def build(name):
    """The detector with random weights, every score above its threshold."""
    import mmdet

    cfg = Config.fromfile(Path(mmdet.__file__).parent / '.mim' / 'configs' / DETECTORS[name])
    if name.startswith('SSD'):
        import mmdeform_upgrade.models.ssd  # noqa: F401  registers the head

        cfg.model.bbox_head.type = 'PredictableSSDHead'
    test_cfg = cfg.model.test_cfg
    test_cfg.get('rcnn', test_cfg).score_thr = 0.0
    init_default_scope('mmdet')
    torch.manual_seed(0)
    return MODELS.build(cfg.model)


@contextmanager
def operators(module):
    """mmcv's functions call those of a module; yields the seconds spent in them."""
    timed = SimpleNamespace(seconds=0.0)

    def wrap(function):
        def call(*args, **kwargs):
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                timed.seconds += time.process_time() - start

        return call

    for name in NAMES:
        setattr(timed, name, wrap(getattr(module, name)))
    with ExitStack() as stack:
        for place in ('mmcv.ops.nms', 'mmcv.ops.roi_align'):
            stack.enter_context(mock.patch.object(importlib.import_module(place), 'ext_module', timed))
        yield timed


def predict(model, size):
    inputs, samples = _batch(model, 1, size)
    with torch.no_grad():
        found = model.eval().predict(inputs, samples)[0].pred_instances
    return [found.bboxes, found.scores, found.labels, *([found.masks.float()] if 'masks' in found else [])]


def train(model, size):
    """Losses, and the gradients of all parameters."""
    inputs, samples = _batch(model, 2, size)
    model.train().zero_grad()
    losses, _ = model.parse_losses(model.loss(inputs, samples))
    losses.backward()
    return [losses.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def _batch(model, number, size):
    from mmdet.testing import demo_mm_inputs

    torch.manual_seed(0)
    shapes, with_mask = [[3, *size]] * number, getattr(model, 'with_mask', False)
    data = demo_mm_inputs(number, shapes, num_items=[8] * number, with_mask=with_mask, device='cpu')
    for sample in data['data_samples']:
        sample.set_metainfo({'batch_input_shape': size, 'pad_shape': size, 'scale_factor': (1.0, 1.0)})
    with torch.no_grad():
        data = model.data_preprocessor(data, training=False)
    return data['inputs'], data['data_samples']


def difference(first, second):
    """The largest relative difference of two lists of tensors; infinite where their shapes differ."""
    if [t.shape for t in first] != [t.shape for t in second]:
        return float('inf')
    pairs = [(a.double(), b.double()) for a, b in zip(first, second, strict=True) if a.numel()]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


def compare(model, run, size, repeats=1):
    """Difference of both results, ours, and the fastest repetition's milliseconds in operators and in all, of both."""
    results, times = {}, {}
    for _ in range(repeats):
        for module in (importlib.import_module('mmcv._ext'), mmcv_ops):
            with operators(module) as timed:
                start = time.process_time()
                results[module] = run(model, size)
                spent = timed.seconds * 1e3, (time.process_time() - start) * 1e3
            times[module] = min(times.get(module, spent), spent)
    return difference(*results.values()), results[mmcv_ops], *times.values()


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--size', type=int, nargs=2, default=[320, 320], help='height and width (default: 320 320)')
    parser.add_argument('--repeats', type=int, default=3)
    args = parser.parse_args(argv)
    if importlib.import_module('mmcv._ext').__spec__.origin == mmcv_ops.__file__:
        sys.exit('this comparison needs a compiled mmcv: make install MMCV=compiled')
    torch.set_num_threads(1)
    print(conditions('cpu'))
    print(
        '| detector | inference: difference | compiled, ms of all | here | training step: difference | compiled | here |'
    )
    print('|---|---|---|---|---|---|---|')
    for name in DETECTORS:
        model, cells = build(name), []
        for run in (predict, train):
            apart, _, *times = compare(model, run, tuple(args.size), args.repeats)
            cells += [f'{apart:.0e}' if apart else '0', *(f'{inside:.0f} of {all_:.0f}' for inside, all_ in times)]
        print(f'| {name} | {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
    main()
