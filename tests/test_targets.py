import re

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm

from mmdeform_upgrade import ZeroOffsetDCN, find_targets, upgrade_
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


@pytest.mark.parametrize(
    'targets,exclude,expected',
    [
        ('last:1', (), ['layer2.1.conv2']),
        ('last:3', (), ['layer1.1.conv2', 'layer2.0.conv2', 'layer2.1.conv2']),
        ('last:2', ['layer2.1.conv2'], ['layer1.1.conv2', 'layer2.0.conv2']),
        ('last:1', r'layer2\..*', ['layer1.1.conv2']),
        (['layer2.0.conv2', 'stem'], (), ['stem', 'layer2.0.conv2']),
        (['1.conv2'], (), ['layer1.1.conv2', 'layer2.1.conv2']),
        (('conv1',), ['layer1.0.conv1'], ['layer1.1.conv1', 'layer2.0.conv1', 'layer2.1.conv1']),
        (r'layer2\.\d\.conv2', (), ['layer2.0.conv2', 'layer2.1.conv2']),
        (r'layer[12]\.0\..*', (), ['layer1.0.conv1', 'layer1.0.conv2', 'layer2.0.conv1', 'layer2.0.conv2']),
    ],
)
def test_targets_select(targets, exclude, expected):
    assert find_targets(Net(), targets, exclude) == expected


class ResNet(nn.Module):
    """Stages of 23 and 3 blocks, as the last two of a ResNet-101."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 7)
        self.layer3 = nn.Sequential(*(Block(4) for _ in range(23)))
        self.layer4 = nn.Sequential(*(Block(4) for _ in range(3)))
        self.layer4[0].downsample = nn.Sequential(nn.Conv2d(4, 4, 3))
        self.layer4[2].conv_offset = nn.Conv2d(4, 18, 3)


RES5 = ['layer4.0.conv2', 'layer4.1.conv2', 'layer4.2.conv2']
RES4_END = ['layer3.20.conv2', 'layer3.21.conv2', 'layer3.22.conv2']


@pytest.mark.parametrize(
    'targets,expected',
    [
        ('res5c', RES5[2:]),
        ('res5b,c', RES5[1:]),
        ('res5a,b,c', RES5),
        ('res5a-c', RES5),
        ('res5', RES5),
        ('res5+res4b20-22', RES4_END + RES5),
        ('res4b20-b22', RES4_END),
        ('res4a,b1', ['layer3.0.conv2', 'layer3.1.conv2']),
        (['res5c', 'stem'], ['stem', *RES5[2:]]),
        ('in:layer4', RES5),
        ('in:layer4.1', RES5[1:2]),
        (['in:layer4', 'layer3.0.conv1'], ['layer3.0.conv1', *RES5]),
        ({'res5c': 2, 'res4b22': 1}, [RES4_END[2], RES5[2]]),
    ],
)
def test_parts_select_their_spatial_convolutions(targets, expected):
    assert find_targets(ResNet(), targets) == expected


def test_parts_can_be_excluded():
    assert find_targets(ResNet(), 'last:2', 'res5') == RES4_END[1:]
    assert find_targets(ResNet(), 'in:layer4', ['res5a']) == RES5[1:]


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_the_papers_names_are_those_of_mmdets_resnet101(prefix):
    from mmdet.models import ResNet as MMResNet

    with torch.device('meta'):
        net = MMResNet(depth=101)
    net = nn.ModuleDict({'backbone': net}) if prefix else net
    assert find_targets(net, 'res5+res4b20-22') == [prefix + name for name in RES4_END + RES5]


def test_both_convolutions_of_a_basic_block_are_taken():
    from mmdet.models import ResNet as MMResNet

    with torch.device('meta'):
        net = MMResNet(depth=18)
    assert find_targets(net, 'res5b') == ['layer4.1.conv1', 'layer4.1.conv2']


@pytest.mark.parametrize(
    'targets,message',
    [
        ('res5d', r'layer4 has 3 blocks, a to c; there is no d'),
        ('res4b23', r'layer3 has 23 blocks, a to b22; there is no b23'),
        ('res5c-a', 'the range c-a runs backwards'),
        ('res5c3', "'c3' is no block; blocks are a, b, c"),
        ('res3', 'no ResNet stage layer2 or res3; name its convolutions, or a part of it as in:NAME'),
        ('in:layer9', r'in:layer9: there is no such module; there are stem, layer3, layer3\.0'),
        ('in:layer4.2.conv1', r'layer4\.2\.conv1 has no convolution with a kernel larger than 1x1\. Upgradable'),
        (['last:2', 'stem'], "'last:2' stands alone"),
        ({'res5c': 2, 'res5': 1}, r'give layer4\.2\.conv2 both 2 and 1 deform_groups'),
        ({'res5c': 'two'}, "has deform_groups 'two', expected a whole number"),
        ({}, 'match no convolution'),
    ],
)
def test_bad_parts_are_named(targets, message):
    with pytest.raises(TargetError, match=message):
        upgrade_(ResNet(), targets)


def test_each_target_may_have_deform_groups_of_its_own():
    net = ResNet()
    report = upgrade_(net, {'res5': 4, 'res4b22': 2})
    assert {layer.name: layer.deform_groups for layer in report.layers} == {
        'layer3.22.conv2': 2,
        **dict.fromkeys(RES5, 4),
    }
    assert net.layer4[0].conv2.conv_offset.weight.shape[0] == 2 * 4 * 9


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


def test_a_block_that_is_called_a_convolution_is_none():
    class SplitAttentionConv2d(nn.Sequential):
        """As ResNeSt's: what has the weights is inside."""

    net = nn.Sequential(nn.Conv2d(4, 4, 3), SplitAttentionConv2d(nn.Conv2d(4, 4, 3)))
    assert find_targets(net, r'1.*') == ['1.0']
    with pytest.raises(TargetError, match="exclude: '1' is a SplitAttentionConv2d, not a convolution"):
        find_targets(net, 'last:1', exclude=['1'])


@pytest.mark.parametrize(
    'targets,exclude,message',
    [
        (
            'last:9',
            (),
            r'asks for 9 convolutions, and there are 5: ask for fewer, .*\. Upgradable, in order: stem, layer1\.0\.conv2',
        ),
        ('last:3', r'layer.*', r'there are 1 after 8 excluded'),
        ('last:0', (), 'write last:N with a whole number N'),
        ('last:x', (), 'write last:N with a whole number N'),
        (r'layer9\..*', (), r'match no convolution .a string is a regular expression.*Upgradable, in order: stem'),
        ('layer(', (), 'neither last:N nor a regular expression'),
        ('bn', (), 'match no convolution'),
        (['layer2.1.conv3'], (), r"'layer2.1.conv3' names no module. Did you mean 'layer2\.1\.conv2'"),
        (['layer2'], (), "'layer2' is a Sequential, not a convolution"),
        (['stem'], ['stam'], r"exclude: 'stam' names no module. Did you mean 'stem'\? "),
        ([], (), 'match no convolution'),
        (['stem'], ['stem'], 'match no convolution after 1 excluded'),
        (3, (), 'neither a string nor a sequence of names'),
    ],
)
def test_bad_targets_are_named(targets, exclude, message):
    with pytest.raises(TargetError, match=message):
        find_targets(Net(), targets, exclude)


def test_a_model_without_convolutions_says_so():
    with pytest.raises(TargetError, match='no upgradable convolution'):
        find_targets(nn.Sequential(nn.Linear(2, 2), nn.Flatten()), 'last:1')


def test_the_documented_targets_are_understood():
    from ast import literal_eval
    from pathlib import Path

    from mmdet.models import ResNet as MMResNet

    text = (Path(__file__).parents[1] / 'docs/targets.md').read_text(encoding='utf8')
    forms = [line.split(' | ')[0] for line in text.splitlines() if line.startswith('| `')]
    depths = re.findall(r'^\| \d \| (`.+`) \|$', text, re.M)
    shown = [code for cell in forms + depths for code in re.findall(r'`([^`]+)`', cell)]
    with torch.device('meta'):
        net = MMResNet(depth=101)
    understood = 0
    for code in shown:
        targets = code if re.match(r'res\d', code) else literal_eval(code)
        if targets not in ('in:stages.3', 'in:neck'):  # of other networks
            assert find_targets(net, targets)
            understood += 1
    assert understood == 14
