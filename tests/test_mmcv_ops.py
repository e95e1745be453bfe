"""mmcv's operators where its compiled part is missing, against the compiled ones where it is not."""

import importlib
import subprocess
import sys

import pytest
import torch

from mmdeform_upgrade import UpgradeError
from mmdeform_upgrade.mm import mmcv_ops

from .conftest import ROOT


@pytest.fixture(params=['PyTorch', 'torchvision'])
def ours(request, monkeypatch):
    """Our operators with each of their sources."""
    if request.param == 'torchvision' and mmcv_ops._torchvision() is None:
        pytest.skip('torchvision does not load here')
    if request.param == 'PyTorch':
        monkeypatch.setattr(mmcv_ops, '_torchvision', lambda: None)
    return mmcv_ops


def _compiled():
    return importlib.import_module('mmcv._ext')


def _boxes(kind, number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(number, 4, generator=generator) * 60
    boxes[:, 2:] += boxes[:, :2]
    scores = torch.rand(number, generator=generator)
    if kind == 'ties':  # equal scores, equal boxes, overlaps exactly at the threshold
        boxes, scores = (boxes / 12).round() * 12, (scores * 8).round() / 8
    if kind == 'degenerate':
        boxes[::3, 2:] = boxes[::3, :2]
        boxes[1::7, 2:] = boxes[1::7, :2] - 5
    return boxes, scores


KINDS = ('random', 'ties', 'degenerate')


@pytest.mark.compiled_mmcv
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('number', [0, 1, 7, 255, 256, 257, 1500])
@pytest.mark.parametrize('kind', KINDS)
def test_nms_keeps_the_same_boxes(ours, kind, number, offset):
    boxes, scores = _boxes(kind, number)
    for threshold in (0.0, 0.3, 0.5, 0.6, 0.7, 1.0):
        expected = _compiled().nms(boxes, scores, iou_threshold=threshold, offset=offset)
        result = ours.nms(boxes, scores, iou_threshold=threshold, offset=offset)
        assert result.tolist() == expected.tolist()


@pytest.mark.compiled_mmcv
@pytest.mark.parametrize('kind', KINDS)
def test_a_chain_of_overlaps_is_decided_in_order(ours, kind):
    """Each box overlaps its neighbours alone, so that whether one stays hangs on all before it."""
    steps = torch.arange(1000.0)
    boxes = torch.stack([steps * 5, 0 * steps, steps * 5 + 10, 0 * steps + 10], 1)
    scores = _boxes(kind, 1000)[1] if kind != 'degenerate' else -steps
    expected = _compiled().nms(boxes, scores, iou_threshold=0.3, offset=0)
    assert ours.nms(boxes, scores, 0.3, 0).tolist() == expected.tolist()
    assert 300 < len(expected) < 600


@pytest.mark.compiled_mmcv
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', [0, 1, 2])
@pytest.mark.parametrize('kind', KINDS)
def test_softnms_keeps_the_same_boxes_and_scores(kind, method, offset):
    boxes, scores = _boxes(kind, 200)
    for min_score in (0.0, 1e-3, 0.2):
        settings = dict(iou_threshold=0.3, sigma=0.5, min_score=min_score, method=method, offset=offset)
        results = []
        for module in (_compiled(), mmcv_ops):
            dets = boxes.new_zeros(len(boxes), 5)
            kept = module.softnms(boxes, scores, dets, **settings)
            results.append((kept.tolist(), dets[: len(kept)]))
        assert results[0][0] == results[1][0]
        torch.testing.assert_close(*(dets for _, dets in results), equal_nan=True)


@pytest.mark.compiled_mmcv
@pytest.mark.parametrize('kind', KINDS)
def test_nms_match_makes_the_same_groups(kind):
    dets = torch.cat([(parts := _boxes(kind, 300))[0], parts[1][:, None]], 1)
    assert mmcv_ops.nms_match(dets, 0.5) == [list(group) for group in _compiled().nms_match(dets, iou_threshold=0.5)]


def _roi_align(module, maps, rois, grad, settings):
    output = torch.zeros_like(grad)
    argmax = [torch.zeros_like(grad) if settings['pool_mode'] == 0 else grad.new_zeros(0) for _ in range(2)]
    module.roi_align_forward(maps, rois, output, *argmax, **settings)
    grad_input = torch.zeros_like(maps)
    module.roi_align_backward(grad, rois, *argmax, grad_input, **settings)
    return output, grad_input


@pytest.mark.compiled_mmcv
@pytest.mark.parametrize('pool_mode', [0, 1], ids=['max', 'avg'])
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('size', [(1, 1), (9, 30)])
def test_roi_align_gives_the_same_values_and_gradients(ours, pool_mode, aligned, ratio, size):
    maps = torch.randn(2, 5, *size)
    boxes, _ = _boxes('random', 40)
    boxes[0] = torch.tensor([3.0, 3.0, 3.0, 3.0])  # empty
    boxes[1] = torch.tensor([-40.0, -40.0, 500.0, 300.0])  # beyond the map on all sides
    boxes[2] = torch.tensor([900.0, 900.0, 950.0, 950.0])  # outside
    rois = torch.cat([torch.arange(40)[:, None] % 2, boxes], 1)
    if pool_mode == 0:
        rois = rois[1:]  # the compiled operator's maximum of no samples is -10000
    grad = torch.randn(len(rois), 5, 3, 4)
    settings = dict(aligned_height=3, aligned_width=4, spatial_scale=0.25, sampling_ratio=ratio, pool_mode=pool_mode)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        tensors = maps.to(dtype), rois.to(dtype), grad.to(dtype)
        results = [_roi_align(module, *tensors, dict(settings, aligned=aligned)) for module in (_compiled(), ours)]
        for expected, result in zip(*results, strict=True):
            torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('pool_mode', [0, 1], ids=['max', 'avg'])
def test_roi_align_without_regions_is_empty(ours, pool_mode):
    settings = dict(
        aligned_height=3, aligned_width=4, spatial_scale=1.0, sampling_ratio=0, pool_mode=pool_mode, aligned=True
    )
    results = _roi_align(ours, torch.randn(2, 5, 8, 8), torch.zeros(0, 5), torch.zeros(0, 5, 3, 4), settings)
    assert results[0].shape == (0, 5, 3, 4) and not results[1].any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align_interpolates_half_precision_in_single(ours, dtype):
    """Under autocast too, which would multiply in half."""
    maps = torch.randn(1, 4, 20, 20).to(dtype)
    rois = torch.tensor([[0.0, 1.5, 2.25, 17.0, 15.5]]).to(dtype)
    settings = dict(aligned_height=2, aligned_width=2, spatial_scale=1.0, sampling_ratio=0, pool_mode=1, aligned=True)
    grad = torch.randn(1, 4, 2, 2).to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        results = _roi_align(ours, maps, rois, grad, settings)
    expected = _roi_align(ours, maps.double(), rois.double(), grad.double(), settings)
    for result, exact in zip(results, expected, strict=True):
        assert torch.equal(result, exact.to(dtype))


def test_focal_loss_is_that_of_mmdet():
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    logits = (torch.randn(50, 4) * 4).requires_grad_()
    target = torch.randint(0, 5, (50,))
    one_hot = torch.nn.functional.one_hot(target, 5)[:, :4]
    expected = py_sigmoid_focal_loss(logits, one_hot, reduction='none')
    expected.sum().backward()
    output, grad, none = torch.empty(50, 4), torch.empty(50, 4), torch.empty(0)
    mmcv_ops.sigmoid_focal_loss_forward(logits.detach(), target, none, output, gamma=2.0, alpha=0.25)
    mmcv_ops.sigmoid_focal_loss_backward(logits.detach(), target, none, grad, gamma=2.0, alpha=0.25)
    torch.testing.assert_close(output, expected.detach())
    torch.testing.assert_close(grad, logits.grad)


def _without_compiled_part(code):
    """Run code in a process that does not find mmcv's compiled part."""
    hide = (
        'import importlib.machinery as m, sys\n'
        'find = m.PathFinder.find_spec.__func__\n'
        "m.PathFinder.find_spec = classmethod(lambda c, n, *a: None if n == 'mmcv._ext' else find(c, n, *a))\n"
    )
    result = subprocess.run([sys.executable, '-c', hide + code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert not result.returncode, result.stderr
    return result.stdout.splitlines()


def test_a_detector_runs_without_the_compiled_part_and_the_frameworks_import(tmp_path):
    """mmdet's interface may be imported first: the config brings the package in before the models are."""
    config = tmp_path / 'retina.py'
    config.write_text(
        "_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'\n"
        "custom_imports = dict(imports=['mmdeform_upgrade'], allow_failed_imports=False)\n"
        'model = dict(backbone=dict(init_cfg=None), test_cfg=dict(score_thr=0.0))\n'
    )
    out = _without_compiled_part(
        'import numpy\n'
        'from mmdet.apis import inference_detector, init_detector\n'
        f'model = init_detector({str(config)!r}, device="cpu", palette="random")\n'
        'model.cfg.test_dataloader.dataset.pipeline[1].scale = (64, 64)\n'
        'print(len(inference_detector(model, numpy.zeros((64, 64, 3), "uint8")).pred_instances))\n'
        'import mmdet.models, mmseg.models, mmseg.apis, mmcv.ops\n'
        'print(sys.modules["mmcv._ext"].__spec__.origin)'
    )
    assert int(out[-2]) > 0 and out[-1] == mmcv_ops.__file__


def test_an_operator_that_is_missing_says_so_when_it_is_called():
    with pytest.raises(UpgradeError, match='carafe_forward.*compiled part.*troubleshooting.md'):
        mmcv_ops.carafe_forward(1, 2)


@pytest.mark.compiled_mmcv
def test_a_compiled_mmcv_is_never_replaced():
    assert _compiled().__file__.endswith('.so')
