import copy
import functools

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.model import efficient_conv_bn_eval, initialize
from mmengine.model.utils import convert_sync_batchnorm  # noqa: F401  (import must not disturb the layer)
from torch import nn
from torch.nn.utils.prune import random_unstructured
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdeform_upgrade import UpgradeError, ZeroOffsetDCN, deform_conv2d, layers, upgrade_
from mmdeform_upgrade.errors import TargetError
from mmdeform_upgrade.layers import upgraded_layers

from .conftest import ROOT, build, relative_error

GEOMETRIES = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, stride=2, padding=1, bias=False),
    dict(kernel_size=(1, 5), padding=(0, 2)),
    dict(kernel_size=3, padding=2, dilation=2, groups=4),
    dict(kernel_size=3, padding='same', dilation=(2, 1)),
    dict(kernel_size=4, padding='same'),
    dict(kernel_size=2, padding='valid'),
    dict(kernel_size=3, padding=1, padding_mode='reflect'),
    dict(kernel_size=3, padding=(2, 1), padding_mode='circular'),
    dict(kernel_size=3, padding=1, groups=8),
    dict(kernel_size=1),
    dict(kernel_size=7, padding=3, stride=(2, 3)),
]


def _pair(dtype=torch.float64, deform_groups=1, **geometry):
    conv = nn.Conv2d(8, 16, dtype=dtype, **geometry)
    return conv, ZeroOffsetDCN.from_conv(copy.deepcopy(conv), deform_groups)


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
@pytest.mark.parametrize('deform_groups', [1, 4])
@pytest.mark.parametrize('backend', ['auto', 'eager', 'reference'])
def test_upgraded_layer_computes_what_the_conv_did(geometry, deform_groups, backend, monkeypatch):
    monkeypatch.setattr(layers, 'deform_conv2d', functools.partial(deform_conv2d, backend=backend))
    conv, layer = _pair(deform_groups=deform_groups, **geometry)
    x = torch.randn(2, 8, 13, 11, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    out, expected = layer(x), conv(y)
    assert relative_error(out, expected) < 1e-12
    probe = torch.randn_like(expected)
    out.backward(probe)
    expected.backward(probe)
    assert relative_error(x.grad, y.grad) < 1e-12
    for name, parameter in conv.named_parameters():
        assert relative_error(layer.get_parameter(name).grad, parameter.grad) < 1e-12, name
    assert layer.conv_offset.weight.grad.abs().sum() > 0, 'offsets must learn from the first step'


@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_dtypes_and_memory_formats(dtype, tolerance, memory_format):
    conv, layer = _pair(dtype=dtype, kernel_size=3, padding=1)
    x = torch.randn(2, 8, 9, 10, dtype=dtype).to(memory_format=memory_format)
    out = layer(x)
    assert out.dtype is dtype
    assert relative_error(out.double(), conv(x).double()) < tolerance
    assert relative_error(layer(x[..., ::2]).double(), conv(x[..., ::2]).double()) < tolerance


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize('grad', [True, False])
def test_on_a_cpu_an_untouched_upgrade_gives_the_same_bits(dtype, grad):
    for geometry in GEOMETRIES:
        conv, layer = _pair(dtype=dtype, **geometry)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, 8, 13, 11, dtype=dtype).to(memory_format=memory_format)
            with torch.set_grad_enabled(grad):
                assert torch.equal(layer(x), conv(x)), geometry


def test_single_picture_and_empty_batch():
    conv, layer = _pair(kernel_size=3, padding=1)
    x = torch.randn(8, 9, 9, dtype=torch.float64)
    assert relative_error(layer(x), conv(x)) < 1e-12
    assert layer(x.new_zeros(0, 8, 9, 9)).shape == (0, 16, 9, 9)


def test_from_conv_carries_everything_and_keeps_the_parameters():
    conv = nn.Conv2d(8, 16, 3, padding=1, dtype=torch.float64).eval()
    conv.weight.requires_grad_(False)
    conv.level = 3  # as YOLO's builders write down where a layer reads
    layer = ZeroOffsetDCN.from_conv(conv)
    assert layer.weight is conv.weight and layer.bias is conv.bias and layer.level == 3
    assert not layer.training
    assert not layer.conv_offset.weight.requires_grad and layer.conv_offset.weight.dtype is torch.float64
    assert set(layer.state_dict()) == {'weight', 'bias', 'conv_offset.weight', 'conv_offset.bias'}
    back = layer.to_conv()
    assert type(back) is nn.Conv2d and back.weight is conv.weight and not back.training
    assert repr(back) == repr(conv) and vars(back).keys() == vars(conv).keys()


def test_a_network_that_leaves_the_meta_device_starts_with_zero_offsets():
    with torch.device('meta'):
        layer = ZeroOffsetDCN(8, 16, 3)
    layer.to_empty(device='cpu')
    for module in layer.modules():
        for parameter in module.parameters(recurse=False):
            nn.init.constant_(parameter, float('nan'))
        module.reset_parameters()  # as FSDP calls it
    assert layer.conv_offset.is_zero() and layer.weight.isfinite().all()


def test_to_conv_refuses_to_lose_trained_offsets():
    _, layer = _pair(kernel_size=3)
    nn.init.constant_(layer.conv_offset.bias, 0.5)
    with pytest.raises(UpgradeError, match='offset branch is not zero .largest parameter 0.5'):
        layer.to_conv()
    assert type(layer.to_conv(force=True)) is nn.Conv2d


def _weight_normed():
    from torch.nn.utils import parametrizations

    return parametrizations.weight_norm(nn.Conv2d(4, 4, 3))


def _with(change):
    conv = nn.Conv2d(4, 4, 3)
    change(conv)
    return conv


class Conv2dOfMine(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    'make,reason',
    [
        (lambda: Conv2dOfMine(4, 4, 3), r'subclass of Conv2d \(.+\.Conv2dOfMine\)'),
        (_weight_normed, 'subclass of Conv2d'),
        (lambda: _with(lambda conv: conv.register_forward_hook(print)), 'hooks.*_forward_hooks'),
        (lambda: _with(lambda conv: conv.register_full_backward_hook(print)), '_backward_hooks'),
        (lambda: _with(lambda conv: conv.register_load_state_dict_pre_hook(print)), '_load_state_dict_pre_hooks'),
        (lambda: _with(lambda conv: setattr(conv, 'forward', conv.forward)), 'parts of its own .forward.'),
        (lambda: _with(lambda conv: setattr(conv, '_conv_forward', print)), '_conv_forward'),
        (lambda: _with(lambda conv: conv.register_module('lora', nn.Linear(2, 2))), 'lora'),
        (lambda: _with(lambda conv: conv.register_buffer('mask', torch.ones(1))), 'mask'),
        (lambda: _with(lambda conv: random_unstructured(conv, 'bias', 0.5)), 'bias_mask, bias_orig'),
        (lambda: nn.ConvTranspose2d(4, 4, 3), 'ConvTranspose2d, not a Conv2d'),
        (lambda: nn.Conv2d(4, 4, 3, dtype=torch.complex64), 'complex64'),
        (lambda: ZeroOffsetDCN(4, 4, 3), 'deformable already'),
    ],
)
def test_from_conv_refuses_what_it_cannot_represent(make, reason):
    with pytest.raises(TargetError, match=reason):
        ZeroOffsetDCN.from_conv(make())


def test_deform_groups_must_divide_the_channels():
    with pytest.raises(UpgradeError, match='deform_groups=3 does not divide in_channels=8'):
        ZeroOffsetDCN(8, 8, 3, deform_groups=3)


# Trap: initialisers that look for Conv2d found the offset branch inside other packages' layers (mmdetection #6625).
@pytest.mark.parametrize(
    'init_cfg',
    [
        dict(type='Kaiming', layer='Conv2d'),
        dict(type='Xavier', layer='Conv2d', bias=0.3),
        dict(type='Normal', layer=['Conv2d', '_ConvNd'], std=1.0),
        dict(type='Constant', layer='Conv2d', val=1.0, bias=2.0),
    ],
)
def test_initialisers_leave_the_offsets_at_zero(init_cfg):
    model = nn.Sequential(ZeroOffsetDCN(8, 8, 3))
    before = model[0].weight.clone()
    initialize(model, init_cfg)
    assert not torch.equal(model[0].weight, before), 'the weight itself is initialised like any Conv2d'
    assert model[0].conv_offset.is_zero()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)
    assert model[0].conv_offset.is_zero()


def _trained_conv_module():
    module = ConvModule(6, 6, 3, padding=1, conv_cfg=dict(type='ZeroOffsetDCN'), norm_cfg=dict(type='BN'))
    nn.init.normal_(module.conv.conv_offset.weight, std=0.1)
    nn.init.normal_(module.conv.conv_offset.bias)
    nn.init.uniform_(module.bn.running_var, 0.5, 2)
    nn.init.normal_(module.bn.running_mean)
    nn.init.normal_(module.bn.weight)
    return module.eval()


def test_conv_type_is_found_by_its_name_in_mmcv():
    assert isinstance(_trained_conv_module().conv, ZeroOffsetDCN)


def test_conv_bn_fusion_keeps_the_output():
    from mmcv.cnn import fuse_conv_bn

    model = nn.Sequential(_trained_conv_module())
    x = torch.randn(2, 6, 8, 8)
    expected = model(x)
    fused = fuse_conv_bn(model)
    assert isinstance(fused[0].bn, nn.Identity)
    assert relative_error(fused(x), expected) < 1e-5


def test_efficient_conv_bn_eval_keeps_the_output():
    module = _trained_conv_module()
    model = nn.Sequential(module.conv, module.bn).eval()
    x = torch.randn(2, 6, 8, 8)
    expected = model(x)
    calls = []
    original = module.conv._conv_forward
    module.conv._conv_forward = lambda *args: calls.append(1) or original(*args)
    efficient_conv_bn_eval.turn_on_efficient_conv_bn_eval_for_single_model(model)
    assert relative_error(model(x), expected) < 1e-5
    assert calls, 'the folded path was taken'


@pytest.mark.compiled_mmcv
def test_state_dict_is_that_of_mmcvs_dcn():
    from mmcv.ops import DeformConv2dPack

    theirs = DeformConv2dPack(8, 8, 3, padding=1, deform_groups=2, bias=False)
    ours = ZeroOffsetDCN(8, 8, 3, padding=1, deform_groups=2, bias=False)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    nn.init.normal_(theirs.conv_offset.weight, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 8, 9, 9)
    assert relative_error(ours(x), theirs(x)) < 1e-4


def test_an_upgraded_network_compiles_without_a_graph_break():
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), ZeroOffsetDCN(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    nn.init.normal_(model[2].conv_offset.weight, std=0.1)
    compiled, x = torch.compile(model, fullgraph=True, backend='aot_eager'), torch.randn(2, 3, 9, 9)
    for autocast in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            torch.testing.assert_close(compiled(x), model(x))
            compiled(x).float().sum().backward()
    assert model[2].conv_offset.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('training', [True, False])
def test_an_upgraded_detector_compiles_whole(tiny_detector, training):
    torch._dynamo.reset()
    model, picture = tiny_detector.train(training), torch.randn(1, 3, 96, 96)
    state = copy.deepcopy(model.state_dict())  # a step changes the statistics of batch normalisation
    expected = model(picture, mode='tensor')
    model.load_state_dict(state)
    found = torch.compile(model, fullgraph=True, backend='aot_eager')(picture, mode='tensor')
    torch.testing.assert_close(found, expected)
    torch.cat([output.flatten() for output in tree_leaves(found)]).square().sum().backward()
    layers = upgraded_layers(model)
    assert len(layers) == 3 and all(layer.conv_offset.weight.grad.abs().sum() > 0 for layer in layers.values())


@pytest.fixture
def tiny_detector():
    """An upgraded SSD on a narrow ResNet-18, with trained offsets."""
    cfg = Config.fromfile(ROOT / 'benchmarks/demo/configs/ssd96_r18_shapes.py')
    cfg.model.backbone.base_channels = 4
    cfg.model.neck.update(in_channels=(8, 16, 32), out_channels=(16,), min_channels=8)
    cfg.model.bbox_head.in_channels = (8, 16, 32, 16)
    model = build(cfg)
    upgrade_(model.backbone, 'last:3')
    for layer in upgraded_layers(model).values():
        nn.init.normal_(layer.conv_offset.weight, std=0.1)
    return model


def test_autocast_casts_the_input_once():
    layer, casts = ZeroOffsetDCN(4, 4, 3).requires_grad_(False), []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            casts.extend([args[0].shape] if function is torch.ops.aten._to_copy.default else [])
            return function(*args, **(kwargs or {}))

    x = torch.randn(1, 4, 9, 9)
    with Casts(), torch.autocast('cpu', torch.bfloat16):
        layer(x)
    assert casts.count(x.shape) == 1
