"""A release without the plugin: mmdet's own switch, mmcv's own layer, the same detections."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config

from mmdeform_upgrade.release import publish, stock_config

from ..conftest import MMDET_CONFIGS, ROOT, build

RUN = """
import sys, torch, json
sys.modules['mmdeform_upgrade'] = None  # whoever imports it fails
from mmdet.apis import inference_detector, init_detector
model = init_detector(sys.argv[1], sys.argv[2], device='cpu')
with torch.no_grad():
    out = model(torch.load(sys.argv[3]), None, mode='tensor')
found = inference_detector(model, sys.argv[5]).pred_instances
torch.save([*(tensor for level in out for tensor in level), found.bboxes, found.scores, found.labels], sys.argv[4])
print(type(model.backbone.layer4[0].conv2).__module__)
"""


def _retinanet(**backbone):
    cfg = Config.fromfile(MMDET_CONFIGS / 'retinanet' / 'retinanet_r50_fpn_1x_coco.py')
    cfg.model.backbone.update(
        type='DeformUpgrade', base_type='ResNet', targets='res5', base_channels=8, init_cfg=None, **backbone
    )
    cfg.model.neck.update(in_channels=[32, 64, 128, 256], out_channels=16)
    cfg.model.bbox_head.update(in_channels=16, feat_channels=16, num_classes=3)
    cfg.custom_imports = dict(imports=['mmdeform_upgrade'], allow_failed_imports=False)
    cfg.custom_hooks = [dict(type='DeformUpgradeHook')]
    cfg.load_from = 'baseline.pth'
    return cfg


@pytest.mark.compiled_mmcv
def test_a_release_gives_the_same_in_a_stock_installation(tmp_path):
    cfg = _retinanet()
    model = build(cfg).eval()
    for name, parameter in model.named_parameters():
        if 'conv_offset' in name:
            torch.nn.init.normal_(parameter, std=1 if name.endswith('bias') else 0.05)
    torch.nn.init.zeros_(model.bbox_head.retina_cls.bias)  # else no score reaches the threshold
    torch.nn.init.normal_(model.bbox_head.retina_cls.weight, std=0.1)
    checkpoint, picture = tmp_path / 'run.pth', str(tmp_path / 'picture.png')
    cv2.imwrite(picture, torch.randint(256, (96, 128, 3), dtype=torch.uint8).numpy())
    meta = {'dataset_meta': {'classes': ('a', 'b', 'c')}, 'experiment_name': 'retina'}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, checkpoint)
    cfg.work_dir = 'work_dirs/mine'
    cfg.dump(tmp_path / 'retina.py')
    release, _, stock = publish(
        str(checkpoint), str(tmp_path / 'zoo'), config=str(tmp_path / 'retina.py'), date='20260101'
    )
    assert 'mmdeform_upgrade' not in Path(stock).read_text() and stock.endswith('-stock.py')
    assert 'work_dirs/mine' not in Path(stock).read_text()
    image = torch.randn(1, 3, 96, 128)
    torch.save(image, tmp_path / 'image.pt')
    arguments = [stock, release, tmp_path / 'image.pt', tmp_path / 'out.pt', picture]
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    result = subprocess.run(
        [sys.executable, '-c', RUN, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1] == 'mmcv.ops.deform_conv'
    with torch.no_grad():
        expected = [tensor for level in model(image, None, mode='tensor') for tensor in level]
    detections = inference_detector(init_detector(cfg, release, device='cpu'), picture).pred_instances
    *found, boxes, scores, labels = torch.load(tmp_path / 'out.pt')
    assert len(found) == len(expected) == 10
    assert len(boxes) >= 50 and torch.equal(labels, detections.labels)
    assert (boxes - detections.bboxes).abs().max() < 1e-2 and (scores - detections.scores).abs().max() < 1e-4
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 1e-4 * b.abs().max().clamp_min(1)
    for layer in model.backbone.layer4:
        torch.nn.init.zeros_(layer.conv2.conv_offset.weight), torch.nn.init.zeros_(layer.conv2.conv_offset.bias)
    with torch.no_grad():
        plain = [tensor for level in model(image, None, mode='tensor') for tensor in level]
    assert max((a - b).abs().max() for a, b in zip(plain, expected, strict=True)) > 1e-2, 'the offsets do something'


def test_the_stock_config_names_whole_stages_and_leaves_the_other_settings():
    cfg = _retinanet()
    cfg.model.backbone.update(targets='res4+res5', deform_groups=2)
    cfg.custom_hooks += [dict(type='BFloat16Hook'), dict(type='OffsetLoggerHook')]
    before = json.dumps(cfg.to_dict(), default=str)
    stock, _ = stock_config(cfg)
    assert stock.model.backbone.type == 'ResNet' and stock.model.backbone.dcn.deform_groups == 2
    assert stock.model.backbone.stage_with_dcn == (False, False, True, True)
    assert 'custom_hooks' not in stock and stock.load_from is None and stock.train_dataloader == cfg.train_dataloader
    assert json.dumps(cfg.to_dict(), default=str) == before


@pytest.mark.parametrize(
    'change,reason',
    [
        (dict(targets='last:2'), 'the switch changes whole stages'),
        (dict(targets={'res5': 1, 'res4': 2}), 'different deform_groups'),
        (dict(targets=['conv1'], frozen_stages=-1), 'conv1 is not the 3x3 convolution of a Bottleneck block'),
        (dict(depth=18), 'is not the 3x3 convolution of a Bottleneck block'),
    ],
)
def test_what_the_switch_cannot_say_has_a_reason(change, reason):
    cfg = _retinanet()
    cfg.model.backbone.update(change)
    if 'depth' in change:
        cfg.model.neck.in_channels = [8, 16, 32, 64]
    stock, found = stock_config(cfg)
    assert stock is None and reason in found


def test_other_parts_of_this_package_have_a_reason_too():
    cfg = Config.fromfile(ROOT / 'configs/ssd512_upgrade.py')
    assert 'the config needs PredictableSSDHead, WideSSDNeck' in stock_config(cfg)[1]


def test_a_backbone_that_computes_its_drop_path_has_a_reason():
    cfg = _retinanet()
    swin = dict(type='SwinTransformer', embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    cfg.model.backbone = dict(swin, type='DeformUpgrade', base_type='SwinTransformer', targets='last:1')
    cfg.model.neck.in_channels = [8, 16, 32, 64]
    stock, reason = stock_config(cfg)
    assert stock is None and 'is not the 3x3 convolution of a Bottleneck' in reason
