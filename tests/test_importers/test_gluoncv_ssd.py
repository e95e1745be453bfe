"""ssd_512_resnet50_v1: an import computes what GluonCV's network computes."""

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

TOLERANCE = 2e-4


@pytest.fixture(scope='module')
def tensors(tmp_path_factory):
    """Written to a file and read back, under stripped names."""
    path = tmp_path_factory.mktemp('ssd') / 'ssd_512_resnet50_v1_voc.params'
    written = files.write_ssd(path, classes=20, dialect='full')
    read = read_mxnet(path)
    path.unlink()
    assert all(torch.equal(a, b) for a, b in zip(written.values(), read.values(), strict=True))
    return dict(zip(written, read.values(), strict=True))


@pytest.fixture(scope='module')
def imported(tensors):
    return SSD.convert(tensors)


@pytest.fixture(scope='module')
def cfg():
    return Config.fromfile(ROOT / 'configs/gluoncv/ssd512_r50_voc.py')


@pytest.fixture(scope='module')
def model(cfg, imported):
    model = build(cfg).eval()
    model.load_state_dict(imported.state_dict, strict=True)
    return model


@pytest.fixture(scope='module')
def small(tensors):
    """A picture of 128 pixels and what GluonCV's network makes of it, in float64."""
    x = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(3)).double()
    return x, oracles.ssd_maps(tensors, x)


def _error(model, small):
    """Greatest difference of the raw maps, GluonCV's background moved to the end by hand."""
    x, expected = small
    model.double()
    try:
        with torch.no_grad():
            found = model.bbox_head(model.extract_feat(x))
    finally:
        model.float()
    worst = 0.0
    for cls, box, (expected_cls, expected_box) in zip(*found, expected, strict=True):
        expected_cls = expected_cls.unflatten(1, (-1, 21))
        expected_cls = torch.cat([expected_cls[:, :, 1:], expected_cls[:, :, :1]], 2).flatten(1, 2)
        for a, b in ((cls, expected_cls), (box, expected_box)):
            assert a.shape == b.shape
            assert 0.2 < b.std() < 4, 'values are of order one'
            worst = max(worst, float((a - b).abs().max()))
    return worst


def test_raw_maps_are_gluoncvs(model, imported, small):
    assert imported.problems(model) == []
    assert _error(model, small) < TOLERANCE


def _missed_fold(model, tensors):
    model.backbone.layer3[2].bn3.running_mean += tensors['resnetv10_stage3_conv9_bias']


def _wrong_eps(model, tensors):
    for level in model.neck.extra_layers:
        for layer in level:
            layer.bn.eps = 1e-5


def _wrong_backbone_eps(model, tensors):
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3


def _stored_gamma(model, tensors):
    model.neck.extra_layers[2][1].bn.weight.data.copy_(tensors['expand_bn2_gamma'])


def _missed_roll(model, tensors):
    model.bbox_head.cls_convs[1][0].bias.data.copy_(tensors['convpredictor2_conv0_bias'])


def _roll_the_other_way(model, tensors):
    weight = tensors['convpredictor4_conv0_weight']
    model.bbox_head.cls_convs[2][0].weight.data.copy_(weight.unflatten(0, (-1, 21)).roll(1, 1).flatten(0, 1))


def _stride_in_the_3x3(model, tensors):
    block = model.backbone.layer4[0]
    block.conv1.stride, block.conv2.stride = (1, 1), (2, 2)


@pytest.mark.parametrize(
    'mistake',
    [
        _missed_fold,
        _wrong_eps,
        _wrong_backbone_eps,
        _stored_gamma,
        _missed_roll,
        _roll_the_other_way,
        _stride_in_the_3x3,
    ],
)
def test_each_mistake_shows_in_the_raw_maps(model, imported, tensors, small, mistake):
    eps = {module: module.eps for module in model.modules() if hasattr(module, 'eps')}
    block = model.backbone.layer4[0]
    try:
        mistake(model, tensors)
        assert _error(model, small) > 20 * TOLERANCE
    finally:
        model.load_state_dict(imported.state_dict)
        for module, value in eps.items():
            module.eps = value
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)


def _lively(tensors, x):
    rows = [torch.tensor([3.0] + [0.0] * 20).repeat(anchors) for anchors in (4, 6, 6, 6, 4, 4)]
    maps = oracles.ssd_maps(tensors, x)
    return oracles.spread_outputs(
        tensors,
        {
            f'convpredictor{2 * level + part}_conv0_': (found, (rows[level], 0.0)[part], (1.5, 0.5)[part])
            for level, pair in enumerate(maps)
            for part, found in enumerate(pair)
        },
    )


def test_detections_on_a_photograph_are_gluoncvs(model, imported, cfg, tensors):
    from mmdet.apis import inference_detector

    x, (width, height) = oracles.photo(512, cv2.INTER_LINEAR)  # 512 x 600: not smaller on both sides
    with torch.no_grad():
        tensors = _lively(tensors, x)
        boxes, scores = oracles.ssd_decode(
            oracles.ssd_maps(tensors, x),
            [tensors[f'ssdanchorgenerator{level}_anchor_{level}'] for level in range(6)],
            20,
        )
    expected = oracles.box_nms(boxes, scores)
    expected[:, 2:] *= torch.tensor([width, height, width, height]) / 512
    init_default_scope('mmdet')
    model.cfg = cfg
    model.load_state_dict(SSD.convert(tensors).state_dict)
    found = inference_detector(model, str(oracles.PHOTO)).pred_instances
    model.load_state_dict(imported.state_dict)
    oracles.assert_same_detections(found, expected)


@pytest.mark.parametrize('dialect', files.DIALECTS)
def test_all_four_ways_of_naming_mean_the_same(tensors, imported, dialect):
    named = files.rename_ssd(tensors, dialect)
    assert SSD.recognise(named) and not YOLO.recognise(named)
    result = SSD.convert(named)
    assert list(result.state_dict) == list(imported.state_dict)
    for name, tensor in result.state_dict.items():
        assert torch.equal(tensor, imported.state_dict[name])
    assert not set(result.renamed) & set(result.dropped) and {*result.renamed, *result.dropped} == set(named)
    assert set(result.state_dict) == {*result.renamed.values(), *result.changed}


def test_the_record_names_what_was_dropped_and_changed(imported):
    assert len(imported.dropped) == 32 + 6 and len(imported.renamed) == 329
    assert imported.dropped['resnetv10_stage1_conv0_bias'] == 'subtracted from the mean of the norm behind it'
    assert imported.changed['backbone.layer1.0.bn1.running_mean'] == "the convolution's bias subtracted"


def test_norms_of_several_devices_are_accepted(tensors, imported):
    named = {name.replace('batchnorm', 'syncbatchnorm'): tensor for name, tensor in tensors.items()}
    assert set(SSD.convert(named).state_dict) == set(imported.state_dict)


def test_the_coco_file_fits_the_coco_config_and_no_other(model):
    imported = SSD.convert(files.ssd_tensors(classes=80, seed=1))
    coco = build(Config.fromfile(ROOT / 'configs/gluoncv/ssd512_r50_coco.py'))
    coco.load_state_dict(imported.state_dict, strict=True)
    assert imported.problems(coco) == []
    problems = '\n'.join(imported.problems(model))
    assert 'num_classes is 20, the weights need 80: set model.bbox_head.num_classes=80' in problems
    assert 'anchors of level 0' in problems


def test_a_network_that_computes_something_else_is_told(imported, cfg):
    changed = cfg.copy()
    changed.merge_from_dict(
        {
            'model.data_preprocessor.bgr_to_rgb': False,
            'model.backbone.style': 'pytorch',
            'model.neck.norm_cfg': dict(type='BN', eps=1e-5),
            'model.bbox_head.bbox_coder.target_stds': [1.0, 1.0, 1.0, 1.0],
            'model.bbox_head.anchor_generator.min_sizes': [51.2, 102.4, 189.4, 276.4, 363.52, 451],
        }
    )
    problems = imported.problems(build(changed))
    assert len(problems) == 5
    for words in (
        'neck.norm_cfg.eps is 1e-05, the weights need 0.001',
        "style='caffe'",
        'anchors of level 5',
        'target_stds=(0.1, 0.1, 0.2, 0.2)',
        'bgr_to_rgb is False, the weights need True',
    ):
        assert sum(words in problem for problem in problems) == 1, words


def test_the_papers_own_preprocessing_is_told(imported):
    cfg = Config.fromfile(ROOT / 'configs/ssd/ssd512_r50_240e_voc0712.py')
    cfg.model.backbone.init_cfg = None
    mean, std, colours = imported.problems(build(cfg))
    assert 'mean is [103.53, 116.28, 123.675], the weights need [123.675' in mean
    assert 'std is [1.0, 1.0, 1.0], the weights need [58.395' in std and 'bgr_to_rgb is False' in colours


def test_a_file_without_its_backbone_is_explained(tensors):
    named = files.rename_ssd(tensors, 'structural')
    named = {name: tensor for name, tensor in named.items() if not name.startswith('features.')}
    assert SSD.recognise(named)
    with pytest.raises(CheckpointError, match='MXNet 1.2.0 lost the features') as error:
        SSD.convert(named)
    assert len(str(error.value)) < 400


def test_another_backbone_is_named(tensors):
    named = {name.replace('resnetv10', 'mobilenet0'): tensor for name, tensor in tensors.items()}
    message = r'(?s)like GluonCV SSD512 on ResNet-50.*not know \(297\): mobilenet0_conv0_weight'
    with pytest.raises(CheckpointError, match=message):
        SSD.convert(named)


def test_a_deeper_resnet_is_not_taken_for_resnet_50(tensors):
    deeper = {f'resnetv10_stage3_conv60_{parameter}': torch.zeros(8) for parameter in ('weight', 'bias')}
    with pytest.raises(CheckpointError, match=r'does not know \(2\): resnetv10_stage3_conv60_weight'):
        SSD.convert({**tensors, **deeper})


def test_all_problems_are_told_at_once(tensors):
    named = dict(tensors)
    named['surplus'] = torch.zeros(1)
    named['resnetv10_stage1_conv0_bias'] = torch.zeros(3)
    named['convpredictor2_conv0_weight'] = torch.zeros(125, 2048, 3, 3)
    named['convpredictor6_conv0_weight'] = torch.zeros(180, 512, 3, 3)
    named['ssd1_expand_bn0_beta'] = named['expand_bn0_beta']
    named['expand_bn1_beta'] = named['expand_bn1_beta'].to(torch.int8)
    with pytest.raises(CheckpointError, match='looks like GluonCV SSD512') as error:
        SSD.convert(named)
    for words in (
        'does not know (1): surplus',
        'resnetv10_stage1_conv0_bias (torch.float32, (3,)): shape',
        "convpredictor2_conv0_weight (torch.float32, (125, 2048, 3, 3)): unflatten: Provided sizes [-1, 21, 1] don't multiply up",
        "convpredictor6_conv0_weight (torch.float32, (180, 512, 3, 3)): unflatten: Provided sizes [-1, 21, 1] don't multiply up",
        'ssd1_expand_bn0_beta (torch.float32, (512,)): expand_bn0_beta is the same parameter',
        'expand_bn1_beta (torch.int8, (512,)): expected floats',
    ):
        assert words in str(error.value), words


@pytest.mark.parametrize(
    'name,value,message',
    [
        ('ssdanchorgenerator0_anchor_0', None, "but for its outputs or anchors: 'anchor_generators.0.anchors'"),
        ('ssdanchorgenerator1_anchor_1', torch.zeros(6), 'but for its outputs or anchors: too many indices'),
    ],
)
def test_a_file_without_what_tells_its_outputs_is_refused(tensors, name, value, message):
    named = {known: tensor for known, tensor in tensors.items() if known != name}
    if value is not None:
        named[name] = value
    with pytest.raises(CheckpointError, match=message):
        SSD.convert(named)


def test_the_sources_values_are_left_alone(tensors):
    before = {name: tensor.clone() for name, tensor in tensors.items() if 'stage4' in name or 'predictor' in name}
    SSD.convert(tensors)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())
