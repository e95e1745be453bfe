import copy

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from torch import nn

from benchmarks.zoo.network import deformable_path
from mmdeform_upgrade import UpgradeError, ZeroOffsetDCN, revert_, upgrade_
from mmdeform_upgrade.errors import TargetError

from .conftest import MMDET_CONFIGS, ROOT, build, relative_error
from .faults.wrong_input.common import nothing_else_changes


def _config(name):
    if name == 'ssd512':
        return Config.fromfile(ROOT / 'configs/ssd/ssd512_r50_240e_voc0712.py'), 192
    if name == 'yolov3':
        return Config.fromfile(MMDET_CONFIGS / 'yolo/yolov3_d53_8xb8-320-273e_coco.py'), 128
    from pathlib import Path

    import mmseg

    return Config.fromfile(
        Path(mmseg.__file__).parent / '.mim/configs/deeplabv3/deeplabv3_r50-d8_4xb4-20k_voc12aug-512x512.py'
    ), 96


def _offline(cfg):
    cfg.model.backbone.pop('init_cfg', None)
    cfg.model.pop('pretrained', None)
    cfg.model.pop('init_cfg', None)
    for norm in (cfg.model.get('data_preprocessor'), cfg.get('norm_cfg')):
        if norm and norm.get('type') == 'SyncBN':
            norm.type = 'BN'
    text = cfg.pretty_text.replace("'SyncBN'", "'BN'")
    return Config.fromstring(text, '.py')


def _outputs(model, x):
    """Outputs of every head."""
    if hasattr(model, 'decode_head'):
        features = model.extract_feat(x)
        outs = [model.decode_head(features)]
        outs += [model.auxiliary_head(features)] if model.with_auxiliary_head else []
        return outs
    outs = model(x, mode='tensor')
    flat = []
    for out in outs:
        flat += list(out) if isinstance(out, (list, tuple)) else [out]
    return flat


@pytest.mark.parametrize('name', ['ssd512', 'yolov3', 'deeplabv3'])
@pytest.mark.parametrize('dtype,tolerance', [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_upgrade_keeps_outputs_and_gradients_of_whole_networks(name, dtype, tolerance):
    cfg, size = _config(name)
    model = build(_offline(cfg)).to(dtype).eval()
    for module in model.modules():  # statistics as of a trained network, so that activations stay of order one
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
    x = torch.randn(1, 3, size, size, dtype=dtype)
    with torch.no_grad():  # and of this input
        momenta = {m: m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
        for module in momenta:
            module.momentum = 1.0
            module.train()
        _outputs(model, torch.cat([x, x.flip(3)]))
        model.eval()
    upgraded = copy.deepcopy(model)
    report = upgrade_(upgraded.backbone, 'last:3')
    assert sum(isinstance(m, ZeroOffsetDCN) for m in upgraded.modules()) == len(report.layers) == 3
    results = []
    for network in (model, upgraded):
        leaf = x.clone().requires_grad_()
        outs = _outputs(network, leaf)
        sum((out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)).mean() for out in outs).backward()
        results.append((outs, leaf.grad, dict(network.named_parameters())))
    (outs, grad, parameters), (new_outs, new_grad, new_parameters) = results
    for out, new in zip(outs, new_outs, strict=True):
        assert relative_error(new, out) < tolerance
    assert relative_error(new_grad, grad) < tolerance
    for key, parameter in parameters.items():
        if parameter.grad is not None and parameter.grad.abs().max() > 0:
            assert relative_error(new_parameters[key].grad, parameter.grad) < tolerance, key
    offsets = [p for key, p in new_parameters.items() if 'conv_offset' in key]
    assert len(offsets) == 6 and all(p.grad.abs().sum() > 0 for p in offsets)


def _backbones():
    from mmdet.models import backbones as det
    from mmseg.models import backbones as seg

    stage = dict(num_modules=1, block='BASIC', fuse_method='SUM')
    extra = {
        f'stage{i}': dict(stage, num_branches=i, num_blocks=(1,) * i, num_channels=(8, 16, 24, 32)[:i])
        for i in (2, 3, 4)
    }
    extra['stage1'] = dict(stage, block='BOTTLENECK', num_branches=1, num_blocks=(1,), num_channels=(8,))
    return {  # and how many groups their last spatial convolutions have
        'basic blocks': (lambda: det.ResNet(18, base_channels=8), {1}),
        'grouped': (lambda: det.ResNeXt(depth=50, groups=4, base_width=4, base_channels=8), {4}),
        'RegNet': (lambda: det.RegNet('regnetx_400mf'), {24}),
        'depthwise': (lambda: det.MobileNetV2(widen_factor=0.25), {144, 240}),
        'depthwise, v3': (lambda: seg.MobileNetV3('small'), {144, 576}),
        'HRNet': (lambda: det.HRNet(extra), {1}),
        'Hourglass': (lambda: det.HourglassNet(2, 1, (8, 8, 8), (1, 1, 1), 8), {1}),
    }


@pytest.mark.parametrize('name', _backbones())
def test_every_kind_of_backbone_keeps_its_outputs(name):
    build_it, groups = _backbones()[name]
    net = build_it()
    net.eval()  # not chained: some of these return None
    upgraded = copy.deepcopy(net)
    report = upgrade_(upgraded, 'last:3')
    assert {layer.groups for layer in report.layers} <= groups, [layer.groups for layer in report.layers]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = net(x)
        for out, want in zip(upgraded(x), expected, strict=True):
            assert torch.equal(out, want) and want.std() > 0
        net.double()
        upgraded.double()
        with deformable_path():
            sampled = upgraded(x.double())
        for out, want in zip(sampled, net(x.double()), strict=True):
            assert relative_error(out, want) < 1e-10


def test_a_conv_that_levels_share_is_replaced_in_all_of_them():
    from mmdet.models.dense_heads import RTMDetSepBNHead

    head = RTMDetSepBNHead(2, 8, feat_channels=8, stacked_convs=2, share_conv=True, pred_kernel_size=1)
    head.eval()
    maps = [torch.randn(1, 8, size, size) for size in (8, 4, 2)]
    expected = head(maps)
    report = upgrade_(head, 'last:2')
    assert report.names == ['reg_convs.0.0.conv', 'reg_convs.0.1.conv']
    assert all(level[1].conv is head.reg_convs[0][1].conv for level in head.reg_convs)
    assert isinstance(head.reg_convs[2][1].conv, ZeroOffsetDCN)
    assert report.parameters_after - report.parameters_before == sum(layer.added for layer in report.layers)
    for outs, wants in zip(head(maps), expected, strict=True):
        assert all(torch.equal(out, want) for out, want in zip(outs, wants, strict=True))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.again = self.b

    def forward(self, x):
        return self.again(self.b(self.a(x)))


def test_a_shared_conv_is_replaced_in_all_its_places():
    net = Net()
    x = torch.randn(1, 3, 6, 6)
    expected = net(x)
    report = upgrade_(net, 'last:1')
    assert report.names == ['b'] and net.b is net.again and isinstance(net.b, ZeroOffsetDCN)
    assert relative_error(net(x), expected) < 1e-5


@pytest.mark.parametrize('kind', [list, tuple, lambda convs: dict(enumerate(convs))])
@pytest.mark.parametrize(
    'around', [lambda levels: levels, lambda levels: {'p3': [levels]}, lambda levels: ([levels], 3)]
)
def test_a_conv_that_a_forward_takes_from_a_plain_list_is_replaced_there(kind, around):
    net = Net()
    net.levels = around(kind([net.a, net.b]))
    upgrade_(net, 'last:1')
    first, last = _leaves(net.levels)
    assert last is net.b and isinstance(net.b, ZeroOffsetDCN) and type(first) is nn.Conv2d
    revert_(net)
    assert _leaves(net.levels)[1] is net.b and type(net.b) is nn.Conv2d


def _leaves(held):
    if isinstance(held, nn.Module):
        return [held]
    items = held.values() if isinstance(held, dict) else held if isinstance(held, (list, tuple)) else ()
    return [leaf for item in items for leaf in _leaves(item)]


def test_hooks_of_a_layer_are_called_after_it_has_gone_back():
    net, seen = Net(), []
    upgrade_(net, 'last:1')
    handle = net.b.register_forward_hook(lambda *_: seen.append(1))
    revert_(net)
    net.b(torch.randn(1, net.b.in_channels, 6, 6))
    handle.remove()
    net.b(torch.randn(1, net.b.in_channels, 6, 6))
    assert type(net.b) is nn.Conv2d and seen == [1]


def test_the_report_has_the_names_of_the_state_dict_under_activation_checkpointing():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    net = nn.Sequential(checkpoint_wrapper(Net()))
    report = upgrade_(net, 'last:1')
    assert report.names == ['0.b'] and report.parameters_after - report.parameters_before == 18 * (4 * 9 + 1)
    assert '0.b.conv_offset.weight' in net.state_dict()


def test_optimizers_of_the_old_parameters_stay_valid():
    net = Net()
    weight = net.b.weight
    upgrade_(net, 'last:1')
    assert net.b.weight is weight


def _state(net):
    return {name: id(module) for name, module in net.named_modules()}, {n: id(p) for n, p in net.named_parameters()}


@pytest.mark.parametrize(
    'call,message',
    [
        (
            lambda net: upgrade_(net, 'last:2', deform_groups=2),
            r'a: deform_groups=2 does not divide its 3 input channels',
        ),
        (lambda net: upgrade_(net, ['a', 'nothing']), "'nothing' names no module"),
        (lambda net: upgrade_(net.requires_grad_(False), 'last:1'), r'b: its weight is frozen'),
    ],
)
def test_refused_call_leaves_the_model_untouched(call, message):
    net = Net()
    before = _state(net)
    with pytest.raises(TargetError, match=message):
        call(net)
    assert _state(net) == before


def test_a_wrapped_network_is_refused():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Conv2d(3, 3, 3)))
        with pytest.raises(TargetError, match='before DistributedDataParallel wraps it'):
            upgrade_(wrapped, 'last:1')
    finally:
        dist.destroy_process_group()
    upgrade_(wrapped.module, 'last:1')


def test_report_gives_the_papers_numbers():
    report = upgrade_(nn.Sequential(nn.Conv2d(512, 512, 3, padding=1, bias=False)), 'last:1')
    (layer,) = report.layers
    assert (layer.weights_before, layer.weights_after, layer.offset_biases) == (2359296, 2442240, 18)
    assert report.parameters_after - report.parameters_before == layer.added == 82944 + 18
    assert '2 359 296 -> 2 442 240' in str(report)


def test_revert_undoes_an_untrained_upgrade():
    net = Net()
    keys, x = list(net.state_dict()), torch.randn(1, 3, 6, 6)
    expected = net(x)
    upgrade_(net, 'last:2')
    nn.init.ones_(net.a.conv_offset.bias)
    assert revert_(net) == ['b'], 'the layer with trained offsets stays'
    nn.init.zeros_(net.a.conv_offset.bias)
    assert revert_(net) == ['a']
    assert list(net.state_dict()) == keys and relative_error(net(x), expected) == 0
    with pytest.raises(UpgradeError, match='nothing to revert'):
        revert_(net)


def test_what_is_no_part_of_a_network_is_not_reverted():
    with pytest.raises(UpgradeError, match=r'lone ZeroOffsetDCN .* to_conv\(\)'):
        revert_(ZeroOffsetDCN(4, 4, 3))


def test_the_report_shows_both_sides_where_they_differ():
    report = upgrade_(nn.Sequential(nn.Conv2d(2, 2, 3, stride=(1, 2), dilation=(2, 1))), 'last:1')
    assert 'stride 1x2 dilation 2x1' in str(report)


def test_upgrading_changes_no_global_state():
    net = Net()
    with nothing_else_changes():
        assert upgrade_(net, 'last:1').names
