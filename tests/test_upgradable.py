"""What is no target: subclasses, blocks that merge, layers that predict offsets, shared convolutions counted once."""

import pytest
from torch import nn

from mmdeform_upgrade import ZeroOffsetDCN, find_targets, upgrade_
from mmdeform_upgrade.errors import TargetError
from mmdeform_upgrade.layers import merging_method

from .test_targets import Net


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
    with pytest.raises(
        TargetError,
        match=rf'layer2\.1\.conv2: it is a subclass of Conv2d \({kind.__module__}.{kind.__qualname__}\) with a '
        'forward of its own',
    ):
        find_targets(net, ['layer2.1.conv2'])


class Merging(nn.Module):
    """Two branches that some method makes one convolution of, as RepVGG's blocks do."""

    def __init__(self, method='switch_to_deploy'):
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.narrow = nn.Conv2d(4, 4, 1)
        self.__class__ = type('Block', (Merging,), {method: lambda self: None})


METHODS = (
    'switch_to_deploy',  # RepVGG, MobileOne, RepMLP, YOLOv6
    'get_equivalent_kernel_bias',
    'merge_kernel',  # RepLKNet
    'fuse',  # LeViT, TinyViT
    'reparameterize',  # timm
    'convert_to_deploy',
)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('targets', [['1.wide.0'], ['narrow'], 'in:1', r'.*wide\.0', {'1.wide.0': 2}])
def test_what_a_block_merges_for_deployment_is_refused_by_name(method, targets):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Merging(method))
    with pytest.raises(
        TargetError, match=rf'1\.\S+: Block\.{method} of 1 merges it for deployment.*offsets would be lost'
    ):
        upgrade_(net, targets)
    assert not any(isinstance(module, ZeroOffsetDCN) for module in net.modules())


def test_last_passes_over_blocks_that_merge_and_says_so():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Merging(), nn.Conv2d(4, 4, 3), Merging())
    assert find_targets(net, 'last:2') == ['0', '2']
    with pytest.raises(
        TargetError, match=r'there are 2: ask for fewer.*2 others are not, such as 3\.wide\.0 .Block\.switch_to_deploy'
    ):
        find_targets(net, 'last:3')
    with pytest.raises(
        TargetError, match='no upgradable convolution .*1 others are not.*Block.switch_to_deploy of the network'
    ):
        find_targets(Merging(), 'last:1')


def test_a_network_that_only_calls_its_blocks_refuses_no_more_than_them():

    class Network(nn.Sequential):
        def switch_to_deploy(self):
            for block in self:
                getattr(block, 'switch_to_deploy', int)()

    net = Network(nn.Conv2d(3, 4, 3), Merging(), nn.Conv2d(4, 4, 3))
    assert find_targets(net, 'last:2') == ['0', '2']


def test_a_network_whose_method_finds_no_such_block_refuses_nothing():
    """mmpose's estimators all have the method, whatever their backbone is."""

    class Network(nn.Sequential):
        def switch_to_deploy(self):
            for _, layer in self.named_modules():
                if layer is not self and callable(getattr(layer, 'switch_to_deploy', None)):
                    layer.switch_to_deploy()

    class Block(Merging):
        def switch_to_deploy(self):
            super().switch_to_deploy()

    block = Merging()
    block.__class__ = type('Own', (Block,), {})
    assert find_targets(Network(nn.Conv2d(3, 4, 3)), 'last:1') == ['0']
    assert merging_method(block) == 'Own.switch_to_deploy'


@pytest.mark.parametrize('mark', ['deploy', 'rbr_reparam'])
def test_a_block_that_is_merged_already_is_upgraded_as_any_other(mark):
    block = Merging()
    setattr(block, mark, True if mark == 'deploy' else nn.Conv2d(4, 4, 3))
    assert find_targets(nn.Sequential(block), 'last:1') == ['0.wide.0' if mark == 'deploy' else '0.rbr_reparam']


def test_fusing_feature_maps_merges_no_convolutions():
    from mmdet.models.necks import FPG

    assert FPG.fuse and not merging_method(FPG.__new__(FPG))


def test_what_predicts_offsets_inside_another_conv_is_neither_counted_by_last_nor_upgraded():
    from mmcv.ops import DeformConv2dPack, SAConv2d

    net = Net()
    net.layer2[1].conv2 = SAConv2d(4, 4, 3, padding=1, use_deform=True)
    net.layer2[0].conv2 = DeformConv2dPack(4, 4, 3, padding=1)
    assert type(net.layer2[1].conv2.offset_s) is type(net.layer2[0].conv2.conv_offset) is nn.Conv2d
    assert find_targets(net, 'last:2') == ['layer1.0.conv2', 'layer1.1.conv2']
    for targets in (r'.*conv_offset', ['layer2.1.conv2.offset_s']):
        with pytest.raises(TargetError, match='it predicts the offsets of a deformable layer'):
            find_targets(net, targets)


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
    assert find_targets(head, 'last:4') == [
        'cls_convs.0.0.conv',
        'cls_convs.0.1.conv',
        'reg_convs.0.0.conv',
        'reg_convs.0.1.conv',
    ]
