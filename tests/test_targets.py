import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm

from mmdeform_upgrade import ZeroOffsetDCN, find_targets
from mmdeform_upgrade.errors import TargetError


class Block(nn.Module):

    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)


class Net(nn.Module):

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 7)
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.layer2 = nn.Sequential(Block(4), Block(4))
        self.bn = nn.BatchNorm2d(4)


@pytest.mark.parametrize('targets,exclude,expected', [
    ('last:1', (), ['layer2.1.conv2']),
    ('last:3', (), ['layer1.1.conv2', 'layer2.0.conv2', 'layer2.1.conv2']),
    ('last:2', ['layer2.1.conv2'], ['layer1.1.conv2', 'layer2.0.conv2']),
    ('last:1', r'layer2\..*', ['layer1.1.conv2']),
    (['layer2.0.conv2', 'stem'], (), ['stem', 'layer2.0.conv2']),
    (['1.conv2'], (), ['layer1.1.conv2', 'layer2.1.conv2']),
    (('conv1', ), ['layer1.0.conv1'], ['layer1.1.conv1', 'layer2.0.conv1', 'layer2.1.conv1']),
    (r'layer2\.\d\.conv2', (), ['layer2.0.conv2', 'layer2.1.conv2']),
    (r'layer[12]\.0\..*', (), ['layer1.0.conv1', 'layer1.0.conv2', 'layer2.0.conv1', 'layer2.0.conv2']),
])
def test_targets_select(targets, exclude, expected):
    assert find_targets(Net(), targets, exclude) == expected


def test_matching_changes_nothing():
    net = Net()
    before = {name: id(module) for name, module in net.named_modules()}
    find_targets(net, 'last:3')
    assert {name: id(module) for name, module in net.named_modules()} == before


def test_last_skips_what_cannot_be_upgraded():
    net = Net()
    net.layer2[1].conv2 = ZeroOffsetDCN.from_conv(net.layer2[1].conv2)
    net.layer2[0].conv2 = weight_norm(net.layer2[0].conv2)
    net.conv_offset = nn.Conv2d(4, 18, 3)
    assert find_targets(net, 'last:2') == ['layer1.0.conv2', 'layer1.1.conv2']


def test_a_shared_conv_counts_once():
    net = nn.ModuleDict({'a': nn.Conv2d(4, 4, 3), 'b': nn.Conv2d(4, 4, 3)})
    net['c'] = net['b']
    assert find_targets(net, 'last:2') == ['a', 'b']


@pytest.mark.parametrize('targets,exclude,message', [
    ('last:9', (), r"asks for 9 convolutions, and there are 5\. Upgradable, in order: stem, layer1\.0\.conv2"),
    ('last:3', r'layer.*', r'there are 1 after 8 excluded'),
    ('last:0', (), 'write last:N with a whole number N'),
    ('last:x', (), 'write last:N with a whole number N'),
    (r'layer9\..*', (), r"match no convolution .a string is a regular expression.*Upgradable, in order: stem"),
    ('layer(', (), 'neither last:N nor a regular expression'),
    ('bn', (), 'match no convolution'),
    (['layer2.1.conv3'], (), r"'layer2.1.conv3' names no module .did you mean 'layer2\.1\.conv2'"),
    (['layer2'], (), "'layer2' is a Sequential, not a convolution"),
    (['stem'], ['stam'], r"exclude: 'stam' names no module"),
    ([], (), 'match no convolution'),
    (['stem'], ['stem'], 'match no convolution after 1 excluded'),
    (3, (), 'neither a string nor a sequence of names'),
])
def test_bad_targets_are_named(targets, exclude, message):
    with pytest.raises(TargetError, match=message):
        find_targets(Net(), targets, exclude)


def test_a_subclass_that_is_named_is_refused_with_its_reason():

    class Conv2dAdaptivePadding(nn.Conv2d):
        pass

    net = Net()
    net.stem = Conv2dAdaptivePadding(3, 4, 7)
    with pytest.raises(TargetError, match=r'stem: it is a subclass of Conv2d .*Conv2dAdaptivePadding'):
        find_targets(net, ['stem', 'layer2.1.conv2'])


def _subclasses():
    from mmcv.cnn.bricks import ConvAWS2d, ConvWS2d
    from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
    from mmcv.ops import SAConv2d
    return ConvWS2d, ConvAWS2d, SAConv2d, Conv2dAdaptivePadding


@pytest.mark.parametrize('kind', _subclasses(), ids=lambda kind: kind.__name__)
def test_the_frameworks_own_subclasses_are_refused_by_name_and_skipped_by_last(kind):
    net = Net()
    net.layer2[1].conv2 = kind(4, 4, 3, padding=1)
    assert find_targets(net, 'last:1') == ['layer2.0.conv2']
    with pytest.raises(TargetError, match=rf'layer2\.1\.conv2: it is a subclass of Conv2d \({kind.__name__}\) with a '
                                          'forward of its own'):
        find_targets(net, ['layer2.1.conv2'])


def test_what_predicts_offsets_inside_another_conv_is_not_counted_by_last():
    from mmcv.ops import DeformConv2dPack, SAConv2d
    net = Net()
    net.layer2[1].conv2 = SAConv2d(4, 4, 3, padding=1, use_deform=True)
    net.layer2[0].conv2 = DeformConv2dPack(4, 4, 3, padding=1)
    assert type(net.layer2[1].conv2.offset_s) is type(net.layer2[0].conv2.conv_offset) is nn.Conv2d
    assert find_targets(net, 'last:2') == ['layer1.0.conv2', 'layer1.1.conv2']


@pytest.mark.parametrize('conv_cfg', ['ConvWS', 'ConvAWS'])
def test_a_backbone_of_subclasses_only_has_nothing_to_upgrade(conv_cfg):
    from mmdet.models.backbones import ResNet
    net = ResNet(18, base_channels=8, conv_cfg=dict(type=conv_cfg))
    with pytest.raises(TargetError, match='asks for 3 convolutions, and there are 0.*no upgradable convolution'):
        find_targets(net, 'last:3')


def test_levels_that_share_a_conv_count_it_once():
    from mmdet.models.dense_heads import RTMDetSepBNHead
    head = RTMDetSepBNHead(2, 8, feat_channels=8, stacked_convs=2, share_conv=True, pred_kernel_size=1)
    assert head.cls_convs[0][1].conv is head.cls_convs[2][1].conv
    assert find_targets(head, 'last:4') == ['cls_convs.0.0.conv', 'cls_convs.0.1.conv', 'reg_convs.0.0.conv',
                                            'reg_convs.0.1.conv']


def test_a_model_without_convolutions_says_so():
    with pytest.raises(TargetError, match='no upgradable convolution'):
        find_targets(nn.Sequential(nn.Linear(2, 2), nn.Flatten()), 'last:1')
    assert torch.is_grad_enabled()
