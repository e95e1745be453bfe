"""Exported files, run by ONNX Runtime, against PyTorch's own outputs."""

import copy
import io
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

import mmdeform_upgrade.release.onnx as module_under_test
from mmdeform_upgrade import UpgradeError, ZeroOffsetDCN, deform_conv2d, upgrade_
from mmdeform_upgrade.checkpoint import DELTA
from mmdeform_upgrade.errors import ExportError
from mmdeform_upgrade.release.onnx import export_onnx

from ..conftest import ROOT, build, run_tool

onnx = pytest.importorskip('onnx', reason='needs the extra [onnx]')
ort = pytest.importorskip('onnxruntime', reason='needs the extra [onnx]')
pytest.importorskip('onnxscript', reason='needs the extra [onnx]')

LAYERS = {
    'plain': dict(kernel_size=3, padding=1),
    'no_bias': dict(kernel_size=3, padding=1, bias=False),
    'stride_dilation': dict(kernel_size=3, stride=(2, 1), padding=(3, 2), dilation=(3, 2)),
    'non_square': dict(kernel_size=(1, 4), padding=(0, 2), stride=(1, 2)),
    'groups': dict(kernel_size=3, padding=1, groups=2),
    'deform_groups': dict(kernel_size=(3, 2), padding=1, deform_groups=3),
    'all': dict(kernel_size=(2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, deform_groups=3),
    'reflected': dict(kernel_size=3, padding=1, padding_mode='reflect'),
    'same_even': dict(kernel_size=4, padding='same'),
}


def scatter_(model, std=1.0):
    """Offsets of a pixel or so, which differ between taps, axes, groups and positions."""
    for layer in model.modules():
        if isinstance(layer, ZeroOffsetDCN):
            fan_in = layer.conv_offset.weight[0].numel()
            nn.init.normal_(layer.conv_offset.bias, std=std)
            nn.init.normal_(layer.conv_offset.weight, std=std / fan_in**0.5)
    return model


def run(path, input):
    content = path.SerializeToString() if hasattr(path, 'SerializeToString') else str(path)
    return ort.InferenceSession(content, providers=['CPUExecutionProvider']).run(None, {'input': input.numpy()})


def check(outputs, expected):
    assert len(outputs) == len(expected)
    for output, want in zip(outputs, expected, strict=True):
        assert output.shape == tuple(want.shape)
        error = np.abs(output - want.detach().numpy()).max() / want.detach().abs().max()
        assert error < 1e-4
        assert want.detach().abs().max() > 1e-6


def kinds(path):
    return [node.op_type for node in onnx.load(path).graph.node]


class Layers(nn.Module):
    """Every setting on one input."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.layers = nn.ModuleList(ZeroOffsetDCN(6, 4, **settings) for settings in LAYERS.values())

    def forward(self, input):
        maps = self.stem(input)
        return tuple(layer(maps) for layer in self.layers)


@pytest.mark.parametrize('opset', [19, 22])
def test_the_layer_in_every_setting_is_one_standard_node(opset, tmp_path):
    model = scatter_(Layers().eval(), std=1.5)
    names = export_onnx(model, tmp_path / 'x.onnx', size=(11, 14), part='backbone', opset=opset)
    assert names == [f'feature_{i}' for i in range(len(LAYERS))]
    proto = onnx.load(tmp_path / 'x.onnx')
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [('', opset)]
    assert kinds(tmp_path / 'x.onnx').count('DeformConv') == len(LAYERS)
    assert [output.name for output in proto.graph.output] == names
    input = torch.randn(1, 3, 11, 14)
    check(run(tmp_path / 'x.onnx', input), model(input))


def test_swapped_axes_or_groups_would_be_seen(tmp_path):
    model = scatter_(Layers().eval(), std=1.5)
    export_onnx(model, tmp_path / 'x.onnx', size=(11, 14), part='backbone')
    input = torch.randn(1, 3, 11, 14)
    outputs = run(tmp_path / 'x.onnx', input)
    layer = model.layers[list(LAYERS).index('all')]
    maps = model.stem(input)
    offset = layer.conv_offset(maps, layer.stride, layer.padding, layer.dilation)
    N, _, Ho, Wo = offset.shape
    by_tap = offset.view(N, 3, 6, 2, Ho, Wo)
    for wrong in (by_tap.flip(3), by_tap.roll(1, 1), by_tap.flip(2), by_tap.transpose(2, 3)):
        result = deform_conv2d(
            maps, wrong.reshape(offset.shape), layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation
        )
        assert np.abs(outputs[list(LAYERS).index('all')] - result.detach().numpy()).max() > 0.01


class Modulated(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.branch = nn.Conv2d(3, 27, 3, padding=1)

    def forward(self, input):
        offset, mask = self.branch(input).split((18, 9), 1)
        return deform_conv2d(input, offset, self.weight, padding=1, mask=mask)


def test_a_mask_without_a_bias_is_exported(tmp_path):
    model = Modulated().eval()
    export_onnx(model, tmp_path / 'x.onnx', size=(8, 9), part='backbone')
    input = torch.randn(1, 3, 8, 9)
    check(run(tmp_path / 'x.onnx', input), [model(input)])


@pytest.mark.parametrize('model', [Layers, Modulated])
@pytest.mark.filterwarnings('ignore')
def test_the_older_exporter_writes_the_same_node(model):
    model = scatter_(model().eval())
    content = io.BytesIO()
    with torch.no_grad():
        torch.onnx.export(
            model,
            (torch.randn(2, 3, 11, 14),),
            content,
            dynamo=False,
            opset_version=19,
            input_names=['input'],
            dynamic_axes={'input': [0]},
        )
    proto = onnx.load_model_from_string(content.getvalue())
    onnx.checker.check_model(proto)
    assert [entry.domain for entry in proto.opset_import] == ['']
    assert 'DeformConv' in [node.op_type for node in proto.graph.node]
    input = torch.randn(3, 3, 11, 14)
    expected = model(input)
    check(run(proto, input), expected if isinstance(expected, tuple) else [expected])


@pytest.fixture(scope='module')
def resnet():
    from mmdet.models import ResNet

    net = ResNet(18, base_channels=8)
    net.eval()  # returns nothing
    upgrade_(net, 'last:3')
    return net


def test_a_backbone_with_offsets_computes_the_same_for_any_batch(resnet, tmp_path):
    net = scatter_(copy.deepcopy(resnet))
    export_onnx(net, tmp_path / 'x.onnx', size=(64, 96), part='backbone', dynamic_batch=True)
    for batch in (1, 3):
        input = torch.randn(batch, 3, 64, 96)
        check(run(tmp_path / 'x.onnx', input), net(input))


def test_pictures_of_another_number_of_channels_are_exported(tmp_path):
    from mmdet.models import CSPDarknet, ResNet

    for net, channels in ((ResNet(18, base_channels=8, in_channels=1), 1), (CSPDarknet(widen_factor=0.125), 3)):
        net.eval()
        upgrade_(net, 'last:1')
        scatter_(net)
        export_onnx(net, tmp_path / 'x.onnx', size=(64, 64), part='backbone')
        input = torch.randn(1, channels, 64, 64)
        check(run(tmp_path / 'x.onnx', input), net(input))


def test_zero_offsets_stay_deformable_unless_reverted(resnet, tmp_path):
    net = copy.deepcopy(resnet)
    input = torch.randn(1, 3, 64, 64)
    for revert, count in ((False, 3), (True, 0)):
        export_onnx(net, tmp_path / 'x.onnx', size=(64, 64), part='backbone', revert_zero=revert)
        assert kinds(tmp_path / 'x.onnx').count('DeformConv') == count
        check(run(tmp_path / 'x.onnx', input), net(input))
    assert sum(isinstance(m, ZeroOffsetDCN) for m in net.modules()) == 3, 'the given model keeps its layers'


def test_the_tool_exports_a_whole_ssd(tiny_upgrade, tmp_path):
    cfg = Config.fromfile(tiny_upgrade)
    model = scatter_(build(cfg))
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, tmp_path / 'x.pth')
    out = tmp_path / 'x.onnx'
    text = run_tool(
        'deployment/export_onnx.py',
        tiny_upgrade,
        tmp_path / 'x.pth',
        out,
        '--size',
        96,
        96,
        '--opset',
        22,
        '--dynamic-batch',
    ).stdout
    names = [output.name for output in onnx.load(out).graph.output]
    assert names == [f'{kind}_{i}' for kind in ('cls_score', 'bbox_pred') for i in range(4)]
    assert ', '.join(names) in text and kinds(out).count('DeformConv') == 3
    torch.save({'metadata': {'kind': DELTA}, 'state_dict': model.state_dict()}, tmp_path / 'delta.pth')
    refused = run_tool(
        'deployment/export_onnx.py', tiny_upgrade, tmp_path / 'delta.pth', tmp_path / 'y.onnx', check=False
    )
    assert refused.returncode == 2 and 'delta.pth: it is a delta' in refused.stderr
    input = torch.randn(2, 3, 96, 96)
    scores, boxes = model.eval()._forward(input)
    check(run(out, input), [*scores, *boxes])


def test_a_whole_yolov3_computes_the_same(tmp_path, monkeypatch):
    from mmdet.models import Darknet

    widths = [(32, 8), (8, 16), (16, 32), (32, 64), (64, 128)]
    monkeypatch.setattr(Darknet, 'arch_settings', {53: ((1, 1, 2, 2, 2), widths)})
    cfg = Config.fromfile(ROOT / 'configs/yolov3/yolov3_d53-320_200e_voc0712.py')
    cfg.model.backbone.init_cfg = None
    cfg.model.neck.update(in_channels=[128, 64, 32], out_channels=[64, 32, 16])
    cfg.model.bbox_head.update(in_channels=[64, 32, 16], out_channels=[128, 64, 32])
    model = build(cfg)
    model.eval()
    upgrade_(model.backbone, 'last:3')
    scatter_(model)
    names = export_onnx(model, tmp_path / 'x.onnx', size=(64, 64))
    assert names == ['pred_map_0', 'pred_map_1', 'pred_map_2'] and kinds(tmp_path / 'x.onnx').count('DeformConv') == 3
    input = torch.randn(1, 3, 64, 64)
    check(run(tmp_path / 'x.onnx', input), model._forward(input)[0])


@pytest.mark.parametrize(
    'change,message',
    [
        (dict(opset=18), r'opset 18: expected one of \(19, 22\), which define DeformConv'),
        (dict(size=(0, 4)), 'expected height and width'),
        (dict(size=(1, 1)), 'does not run on float32 pictures of'),
        (dict(part='network'), r'Layers cannot be exported as a whole.*--part backbone'),
        (dict(part='neck'), 'part .neck. is unknown'),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(change, message, tmp_path):
    settings = {**dict(path='x.onnx', size=(11, 14), part='backbone'), **change}
    with pytest.raises(ExportError, match=message):
        export_onnx(Layers(), tmp_path / settings.pop('path'), **settings)
    assert list(tmp_path.iterdir()) == []


def test_another_precision_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r'does not run on float32 pictures.*call model.float\(\)'):
        export_onnx(Layers().half(), tmp_path / 'x.onnx', size=(11, 14), part='backbone')


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(UpgradeError, match=r'exporting needs onnxscript: pip install'):
        export_onnx(Layers(), tmp_path / 'x.onnx', size=(11, 14), part='backbone')


def test_an_old_torch_is_told_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(module_under_test.torch.onnx, 'export', lambda model, args, f, opset_version=None: None)
    with pytest.raises(UpgradeError, match=r'Install torch >= 2\.6'):
        export_onnx(Layers(), tmp_path / 'x.onnx', size=(11, 14), part='backbone')


def test_the_model_is_left_as_it_is(tmp_path):
    model = Layers().train()
    export_onnx(model, tmp_path / 'x.onnx', size=(11, 14), part='backbone')
    assert model.training and all(p.requires_grad for p in model.parameters())
