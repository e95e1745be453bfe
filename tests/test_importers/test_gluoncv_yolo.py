"""yolo3_darknet53: an import computes what GluonCV's network computes."""

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.importers.gluoncv import SSD, YOLO
from mmdeform_upgrade.readers.mxnet import read_mxnet

from ..conftest import ROOT, build
from . import gluoncv_files as files
from . import oracles

TOLERANCE = 1e-5
CONFIGS = ROOT / 'configs/gluoncv'


@pytest.fixture(scope='module')
def tensors(tmp_path_factory):
    """Written to a file and read back, under structural names."""
    path = tmp_path_factory.mktemp('yolo') / 'yolo3_darknet53_voc.params'
    written = files.write_yolo(path, classes=20, dialect='exported')
    read = read_mxnet(path)
    path.unlink()
    assert all(torch.equal(a, b) for a, b in zip(written.values(), read.values(), strict=True))
    return dict(zip(written, read.values(), strict=True))


@pytest.fixture(scope='module')
def imported(tensors):
    return YOLO.convert(tensors)


@pytest.fixture(scope='module')
def cfg():
    return Config.fromfile(CONFIGS / 'yolov3_d53-416_voc.py')


@pytest.fixture(scope='module')
def model(cfg, imported):
    model = build(cfg).eval()
    model.load_state_dict(imported.state_dict, strict=True)
    return model


@pytest.fixture(scope='module')
def small(tensors):
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(3)).double()
    return x, oracles.yolo_maps(tensors, x)


def _error(model, small):
    x, expected = small
    model.double()
    try:
        with torch.no_grad():
            (found,) = model.bbox_head(model.extract_feat(x))
    finally:
        model.float()
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert 0.2 < b.std() < 4, 'values are of order one'
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


def test_raw_maps_are_gluoncvs(model, imported, small):
    assert imported.problems(model) == []
    assert _error(model, small) < TOLERANCE


def _wrong_eps(model):
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1.1e-5


def _swapped_convolutions(model):
    first, second = (getattr(model.neck.detect2, f'conv{i}').bn for i in (1, 3))
    first.bias.data, second.bias.data = second.bias.data, first.bias.data


def _wrong_slope(model):
    model.bbox_head.convs_bridge[0].activate.negative_slope = 0.11


@pytest.mark.parametrize('mistake', [_wrong_eps, _swapped_convolutions, _wrong_slope])
def test_each_mistake_shows_in_the_raw_maps(model, imported, small, mistake):
    kept = [
        (module, key, getattr(module, key))
        for module in model.modules()
        for key in ('eps', 'negative_slope')
        if hasattr(module, key)
    ]
    try:
        mistake(model)
        assert _error(model, small) > 20 * TOLERANCE
    finally:
        model.load_state_dict(imported.state_dict)
        for module, key, value in kept:
            setattr(module, key, value)


def _lively(tensors, x):
    mean = torch.tensor([0.0, 0.0, 0.0, 0.0, -1.0] + [-4.0] * 20).repeat(3)
    std = torch.tensor([1.0, 1.0, 0.1, 0.1, 1.5] + [1.5] * 20).repeat(3)
    return oracles.spread_outputs(
        tensors,
        {
            f'yolo_outputs.{level}.prediction.': (found, mean, std)
            for level, found in enumerate(oracles.yolo_maps(tensors, x))
        },
    )


def test_detections_on_a_photograph_are_gluoncvs(model, imported, cfg, tensors):
    from mmdet.apis import inference_detector

    x, (width, height) = oracles.photo(416, cv2.INTER_AREA)
    with torch.no_grad():
        tensors = _lively(tensors, x)
        boxes, scores = oracles.yolo_decode(
            oracles.yolo_maps(tensors, x), [tensors[f'yolo_outputs.{level}.anchors'] for level in range(3)], 20
        )
    expected = oracles.box_nms(boxes, scores)
    expected[:, 2:] *= torch.tensor([width, height, width, height]) / 416
    init_default_scope('mmdet')
    model.cfg = cfg
    model.load_state_dict(YOLO.convert(tensors).state_dict)
    found = inference_detector(model, str(oracles.PHOTO)).pred_instances
    model.load_state_dict(imported.state_dict)
    # mmdet thresholds the two factors of a score, GluonCV their product
    oracles.assert_same_detections(found[found.scores > 0.01], expected)


@pytest.mark.parametrize('dialect', files.DIALECTS)
def test_all_four_ways_of_naming_mean_the_same(tensors, imported, dialect):
    named = files.rename_yolo(tensors, dialect)
    assert YOLO.recognise(named) and not SSD.recognise(named)
    result = YOLO.convert(named)
    assert list(result.state_dict) == list(imported.state_dict)
    for name, tensor in result.state_dict.items():
        assert torch.equal(tensor, imported.state_dict[name])
    assert not set(result.renamed) & set(result.dropped) and {*result.renamed, *result.dropped} == set(named)


def test_the_coco_file_fits_the_coco_config_and_no_other(model):
    imported = YOLO.convert(files.yolo_tensors(classes=80, seed=1))
    coco = build(Config.fromfile(CONFIGS / 'yolov3_d53-416_coco.py'))
    coco.load_state_dict(imported.state_dict, strict=True)
    assert imported.problems(coco) == []
    (problem,) = imported.problems(model)
    assert 'num_classes is 20, the weights need 80: set model.bbox_head.num_classes=80' in problem


@pytest.mark.parametrize('size,data', [(320, 'voc'), (320, 'coco'), (608, 'coco')])
def test_other_sizes_change_the_resize_alone(size, data):
    other, cfg = (Config.fromfile(CONFIGS / f'yolov3_d53-{side}_{data}.py') for side in (size, 416))
    for loader in ('val_dataloader', 'test_dataloader'):
        resize = other[loader].dataset.pipeline[1]
        assert resize == dict(type='ResizeByDirection', scale=(size, size))
        resize.scale = (416, 416)
        assert other[loader] == cfg[loader]
    for key in ('model', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg'):
        assert other[key] == cfg[key]


def test_a_network_that_computes_something_else_is_told(imported):
    cfg = Config.fromfile(CONFIGS / 'yolov3_d53-416_voc.py')
    cfg.merge_from_dict(
        {
            'model.data_preprocessor.std': [255.0, 255.0, 255.0],
            'model.neck.norm_cfg': dict(type='BN', eps=1e-3),
            'model.backbone.act_cfg': dict(type='LeakyReLU', negative_slope=0.2),
            'model.bbox_head.anchor_generator.base_sizes': [
                [(116, 90), (156, 198), (373, 326)],
                [(30, 61), (62, 45), (59, 119)],
                [(10, 13), (33, 23), (16, 30)],
            ],
        }
    )
    problems = imported.problems(build(cfg))
    assert len(problems) == 4
    for words in (
        'neck.norm_cfg.eps is 0.001, the weights need 1e-05',
        'slope is 0.2, the weights need 0.1: set model.backbone.act_cfg.negative_slope=0.1',
        'anchors of level 2 are [[-1.0, -2.5, 9.0, 10.5], [-12.5, -7.5, 20.5, 15.5],',
        'data_preprocessor.std is [255.0, 255.0, 255.0]',
    ):
        assert sum(words in problem for problem in problems) == 1, words


def test_another_backbone_is_named(tensors):
    named = {name.replace('stages.', 'mobilenet.'): tensor for name, tensor in tensors.items()}
    with pytest.raises(CheckpointError, match=r'(?s)like GluonCV YOLOv3 on Darknet-53.*not know.*mobilenet.0'):
        YOLO.convert(named)


def test_all_problems_are_told_at_once(tensors):
    named = dict(tensors)
    named['stages.0.0.0.weight'] = named['stages.0.0.0.weight'].int()
    named['transitions.0.2.weight'] = torch.zeros(1)
    message = r'(?s)GluonCV YOLOv3.*not know \(1\): transitions.0.2.weight.*stages.0.0.0.weight .torch.int32'
    with pytest.raises(CheckpointError, match=message):
        YOLO.convert(named)


@pytest.mark.parametrize(
    'name,shape,message',
    [
        ('yolo_outputs.0.anchors', (5,), 'but for its outputs or anchors: shape'),
        ('yolo_outputs.1.anchors', None, "but for its outputs or anchors: 'yolo_outputs.1.anchors'"),
    ],
)
def test_a_file_that_does_not_tell_its_classes_is_refused(tensors, name, shape, message):
    named = {known: tensor for known, tensor in tensors.items() if known != name}
    if shape is not None:
        named[name] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=message):
        YOLO.convert(named)
