"""torchvision's checkpoints in mmdet's and mmseg's networks. torchvision itself is not needed."""

import re

import pytest
import torch
from mmengine.config import Config

from mmdeform_upgrade.checkpoint import fit_baseline
from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.importers import import_state_dict, matching_formats

from ..conftest import build
from . import foreign
from . import torchvision_oracles as oracles

FASTER = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
MASK = 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
RETINA = 'retinanet/retinanet_r50_fpn_1x_coco.py'
SSD = 'ssd/ssd300_coco.py'
FROM_COCO = {'backbone.norm_cfg.eps': 0.0}
ROI = {'roi_head.bbox_roi_extractor.roi_layer': dict(type='RoIAlign', output_size=7, sampling_ratio=2, aligned=False)}
MASK_ROI = {
    'roi_head.mask_roi_extractor.roi_layer': dict(type='RoIAlign', output_size=14, sampling_ratio=2, aligned=False)
}
EXTRA = {'neck.add_extra_convs': 'on_output', 'neck.relu_before_extra_convs': True}
SSD_PIXELS = {'data_preprocessor.mean': [123.0, 117.0, 104.0]}
KEPT = [i for i in range(1, 91) if i not in foreign.COCO_UNUSED]


def everything_is_accounted_for(imported, source):
    assert set(imported.renamed) | set(imported.dropped) == set(source)
    assert not set(imported.renamed) & set(imported.dropped)
    assert len(set(imported.renamed.values())) == len(imported.renamed)
    for name, target in imported.renamed.items():
        if target not in imported.changed:
            assert torch.equal(imported.state_dict[target], source[name]), name


def close(result, expected):
    scale = expected.abs().max()
    assert scale > 0 and torch.isfinite(scale)
    assert float((result - expected).abs().max() / scale) < 1e-5


def test_resnet_50_computes_in_mmdet_what_torchvision_computes():
    from mmdet.models import ResNet

    source = foreign.random_of(foreign.torchvision_resnet())
    imported = import_state_dict(source)
    everything_is_accounted_for(imported, source)
    assert set(imported.dropped) == {'fc.weight', 'fc.bias'} and not imported.changed
    backbone = ResNet(50)
    backbone.eval()
    backbone.load_state_dict({k.removeprefix('backbone.'): v for k, v in imported.state_dict.items()}, strict=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(backbone(x), oracles.resnet(source, x), strict=True):
            close(ours, theirs)


@pytest.mark.parametrize('depth', [18, 101])
def test_other_resnets_are_renamed_one_to_one(depth):
    source = foreign.random_of(foreign.torchvision_resnet(depth, fc=False))
    imported = import_state_dict(source)
    assert {name.removeprefix('backbone.') for name in imported.state_dict} == set(source)


@pytest.mark.parametrize('fc', ['fc.1', 'fc.fc', None])
def test_a_resnet_with_another_classifier_or_none_is_recognised(fc):
    source = foreign.random_of(foreign.torchvision_resnet(18))
    for parameter in ('weight', 'bias'):
        value = source.pop(f'fc.{parameter}')
        source |= {f'{fc}.{parameter}': value} if fc else {}
    imported = import_state_dict(source)
    everything_is_accounted_for(imported, source)
    assert imported.format == 'a torchvision ResNet' and bool(imported.dropped) == bool(fc)


@pytest.fixture(scope='module')
def ssd():
    return foreign.random_of(foreign.torchvision_ssd())


def test_ssd300_computes_in_mmdet_what_torchvision_computes(ssd, stock):
    imported = import_state_dict(ssd)
    everything_is_accounted_for(imported, ssd)
    model = stock(SSD, SSD_PIXELS)
    model.load_state_dict(fit_baseline(imported, model).state_dict, strict=True)
    x = torch.randn(1, 3, 300, 300)
    with torch.no_grad():
        classes, boxes = model.bbox_head(model.extract_feat(x))
        their_classes, their_boxes = oracles.ssd_maps(ssd, x)
    coder, generator = model.bbox_head.bbox_coder, model.bbox_head.prior_generator
    for level in range(6):
        side = classes[level].shape[-1]
        theirs = their_classes[level].view(-1, 91, side, side)
        close(classes[level].view(-1, 81, side, side), torch.cat([theirs[:, KEPT], theirs[:, :1]], 1))
        # Boxes of the first cell, decoded by each library's rules.
        ours = boxes[level][0, :, 0, 0].view(-1, 4)
        theirs = oracles.ssd_boxes(level, their_boxes[level][0, :, 0, 0].view(-1, 4))
        decoded = coder.decode(generator.base_anchors[level], ours)
        centred = torch.cat([(decoded[:, :2] + decoded[:, 2:]) / 2, decoded[:, 2:] - decoded[:, :2]], 1)
        close(centred, theirs)


def test_ssd_of_another_number_of_classes_has_its_background_moved():
    source = foreign.random_of(foreign.torchvision_ssd(21))
    imported = import_state_dict(source)
    weight = source['head.classification_head.module_list.1.weight'].view(6, 21, -1)
    ours = imported.state_dict['bbox_head.cls_convs.1.0.weight'].view(6, 21, -1)
    assert torch.equal(ours[:, 20], weight[:, 0]) and torch.equal(ours[:, :20], weight[:, 1:])
    assert imported.classes == ()


@pytest.mark.parametrize('nested,mask', [(True, True), (False, True), (True, False)])
def test_rcnn_loads_strictly_with_its_classes_in_order(stock, nested, mask):
    source = foreign.random_of(foreign.torchvision_rcnn(nested=nested, mask=mask))
    imported = import_state_dict(source)
    everything_is_accounted_for(imported, source)
    model = stock(MASK, {**FROM_COCO, **ROI, **MASK_ROI}) if mask else stock(FASTER, {**FROM_COCO, **ROI})
    model.load_state_dict(fit_baseline(imported, model).state_dict, strict=True)
    ours = imported.state_dict
    scores, boxes = (source[f'roi_heads.box_predictor.{name}.weight'] for name in ('cls_score', 'bbox_pred'))
    for row, theirs in ((0, 1), (11, 13), (79, 90), (80, 0)):
        assert torch.equal(ours['roi_head.bbox_head.fc_cls.weight'][row], scores[theirs]), row
        if row < 80:
            assert torch.equal(ours['roi_head.bbox_head.fc_reg.weight'][4 * row + 3], boxes[4 * theirs + 3]), row
    assert imported.classes[0] == 'person' and imported.classes[11] == 'stop sign' and len(imported.classes) == 80
    if mask:
        logits = source['roi_heads.mask_predictor.mask_fcn_logits.bias']
        assert torch.equal(ours['roi_head.mask_head.conv_logits.bias'], logits[KEPT])


@pytest.mark.parametrize('nested', [True, False])
def test_retinanet_loads_strictly_with_its_classes_in_order(stock, nested):
    source = foreign.random_of(foreign.torchvision_retinanet(nested=nested))
    imported = import_state_dict(source)
    everything_is_accounted_for(imported, source)
    model = stock(RETINA, {**FROM_COCO, **EXTRA})
    model.load_state_dict(fit_baseline(imported, model).state_dict, strict=True)
    theirs = source['head.classification_head.cls_logits.bias'].view(9, 91)
    assert torch.equal(imported.state_dict['bbox_head.retina_cls.bias'].view(9, 80), theirs[:, KEPT])


@pytest.fixture
def deeplab_config():
    """DeepLabV3 on a ResNet-50 with torchvision's settings."""
    import mmdeform_upgrade.models.aspp  # noqa: F401  as a config's custom_imports

    norm_cfg = dict(type='BN')
    head = dict(num_classes=21, norm_cfg=norm_cfg, align_corners=False, loss_decode=dict(type='CrossEntropyLoss'))
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(
                    type='SegDataPreProcessor',
                    mean=[123.675, 116.28, 103.53],
                    std=[58.395, 57.12, 57.375],
                    bgr_to_rgb=True,
                ),
                backbone=dict(
                    type='ResNet',
                    depth=50,
                    dilations=(1, 1, 2, 4),
                    strides=(1, 2, 1, 1),
                    style='pytorch',
                    contract_dilation=True,
                    norm_cfg=norm_cfg,
                ),
                decode_head=dict(
                    type='ProjectedASPPHead',
                    in_channels=2048,
                    in_index=3,
                    channels=256,
                    dilations=(1, 12, 24, 36),
                    **head,
                ),
                auxiliary_head=dict(
                    type='FCNHead', in_channels=1024, in_index=2, channels=256, num_convs=1, concat_input=False, **head
                ),
            ),
        )
    )


@pytest.fixture(scope='module')
def deeplab():
    """torchvision's parameters, and their import."""
    source = foreign.random_of(foreign.torchvision_deeplab())
    return source, import_state_dict(source)


def test_deeplab_computes_in_mmseg_what_torchvision_computes(deeplab_config, deeplab):
    source, imported = deeplab
    everything_is_accounted_for(imported, source)
    model = build(deeplab_config).eval()
    model.load_state_dict(fit_baseline(imported, model).state_dict, strict=True)
    x = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        ours = model.backbone(x)
        theirs = oracles.resnet(source, x, 'backbone.', dilations=(1, 1, 2, 4))
        for pair in zip(ours, theirs, strict=True):
            close(*pair)
        for pair in zip(
            (model.decode_head(ours), model.auxiliary_head(ours)), oracles.deeplab(source, theirs), strict=True
        ):
            close(*pair)


def test_other_settings_of_deeplab_are_named(deeplab_config, deeplab):
    deeplab_config.model.decode_head.update(type='ASPPHead', dilations=(1, 6, 12, 18))
    deeplab_config.model.backbone.update(contract_dilation=False)
    problems = '\n'.join(deeplab[1].problems(build(deeplab_config)))
    for text in ("type='ProjectedASPPHead'", r'dilations is (1, 6, 12, 18)', 'contract_dilation=True'):
        assert text in problems, text


@pytest.mark.parametrize(
    'shapes,config,settings',
    [
        (
            foreign.torchvision_rcnn,
            FASTER,
            [
                'backbone.norm_cfg.eps',
                r'roi_layer\.aligned=False',
                r'sampling_ratio is 0, the weights need 2: set model\.roi_head\.bbox_roi_extractor\.roi_layer\.',
            ],
        ),
        (
            foreign.torchvision_retinanet,
            RETINA,
            ['eps is 1e-05, the weights need 0:', "add_extra_convs='on_output'", 'relu_before_extra_convs'],
        ),
        (
            foreign.torchvision_ssd,
            SSD,
            [
                r'data_preprocessor.mean is \[123.675, .*, the weights need \[123.0, 117.0, 104.0\]',
            ],
        ),
    ],
)
def test_settings_that_change_the_numbers_are_named(stock, shapes, config, settings):
    state = {name: torch.empty(shape, device='meta') for name, shape in shapes().items()}
    problems = '\n'.join(import_state_dict(state).problems(stock(config)))
    for setting in settings:
        assert re.search(setting, problems), (setting, problems)


def test_other_anchors_coders_and_styles_are_named(stock):
    state = {name: torch.empty(shape, device='meta') for name, shape in foreign.torchvision_rcnn().items()}
    model = stock(
        FASTER,
        {
            **FROM_COCO,
            **ROI,
            'backbone.style': 'caffe',
            'rpn_head.anchor_generator.scales': [4],
            'roi_head.bbox_head.bbox_coder.target_stds': [0.05, 0.05, 0.1, 0.1],
            'data_preprocessor.bgr_to_rgb': False,
        },
    )
    problems = import_state_dict(state).problems(model)
    assert len(problems) == 4
    for text in (
        "backbone.style='pytorch'",
        'anchors of level 0 are [[-11.31, -5.66, 11.31, 5.66], [-8.0, -8.0, 8.0, 8.0],',
        'target_stds',
        'bgr_to_rgb is False',
    ):
        assert any(text in problem for problem in problems), text


def test_names_beyond_the_table_are_refused_together():
    source = {name: torch.empty(shape, device='meta') for name, shape in foreign.torchvision_rcnn().items()}
    source['backbone.fpn.inner_blocks.0.1.weight'] = source['rpn.head.conv.1.0.weight'] = torch.ones(1)
    message = r'(?s)like torchvision Faster.*does not know \(2\): backbone.fpn.inner_blocks.0.1.*, rpn.head.conv.1.0'
    with pytest.raises(CheckpointError, match=message) as error:
        import_state_dict(source)
    assert str(error.value).count('\n') == 1


def test_every_family_is_recognised_as_one_format():
    for shapes in (
        foreign.torchvision_resnet,
        foreign.torchvision_ssd,
        foreign.torchvision_rcnn,
        foreign.torchvision_retinanet,
        foreign.torchvision_deeplab,
    ):
        state = {name: torch.empty(shape, device='meta') for name, shape in shapes().items()}
        (found,) = matching_formats(state)
        assert 'torchvision' in found.name
