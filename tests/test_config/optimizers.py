"""A network with a layer-wise decay's names, one of its convolutions upgraded, and the groups of its optimizer."""

from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmdeform_upgrade import upgrade_
from mmdeform_upgrade.offsets.optimizer import OFFSET_LR

ADAM = dict(constructor='OffsetOptimizerConstructor', offset_optimizer=dict(type='Adam', lr=OFFSET_LR))


class ConvNeXt(nn.Module):
    """The names that layer-wise decay looks for."""

    def __init__(self):
        super().__init__()
        self.downsample_layers = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)])
        self.stages = nn.ModuleList([nn.ModuleList([nn.Conv2d(4, 4, 3)]), nn.ModuleList([nn.Conv2d(4, 4, 3)])])


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = ConvNeXt(), nn.Conv2d(4, 2, 1)
        upgrade_(self.backbone, 'last:1')


def groups(wrapper, network=None):
    network = network or Network()
    optimizer = build_optim_wrapper(network, Config(dict(wrapper=wrapper)).wrapper).optimizer
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group['params']}


LR = dict(type='SGD', lr=0.01, momentum=0.9)
