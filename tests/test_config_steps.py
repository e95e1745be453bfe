"""Every network of the repository's configs: upgraded from its baseline without a difference, and trained one step."""

import functools

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper

from benchmarks.cost import random_batch
from mmdeform_upgrade.checkpoint import remap_state_dict
from mmdeform_upgrade.config import BUILDER
from mmdeform_upgrade.layers import upgraded_layers

from .conftest import ROOT, build
from .test_configs import LEAVES

pytestmark = pytest.mark.slow
SIZE = 64  # pixels; ResNet's last stage is then 2 to 8 pixels wide
SSD_SIZE = 512  # what its last level needs


def _load(path):
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None
    cfg.model.pop('pretrained', None)
    if cfg.model.data_preprocessor.get('size'):
        cfg.model.data_preprocessor.size = (SIZE, SIZE)  # to which it pads
    if 'dilations' in cfg.model.get('decode_head', {}):
        # ASPP's own reach far outside so small a map, for which PyTorch has no fast convolution on a CPU.
        cfg.model.decode_head.dilations = (1, 2, 3, 4)
    return cfg


@functools.cache
def _distinct():
    """The first config of each network, optimizer included; not while tests are collected, which reads no config."""
    found = {}
    for path in LEAVES:
        cfg = _load(path)
        found.setdefault(f'{cfg.model}{cfg.optim_wrapper}', path)
    return set(found.values())


def _network(cfg):
    torch.manual_seed(0)
    return revert_sync_batchnorm(build(cfg)).eval()


def _baseline_of(cfg):
    plain = Config(cfg.to_dict())
    backbone = plain.model.backbone
    backbone.type = backbone.pop('base_type')
    for key in ('targets', 'exclude', 'deform_groups'):
        backbone.pop(key, None)
    return _network(plain)


@pytest.mark.parametrize('path', LEAVES, ids=lambda path: str(path.relative_to(ROOT / 'configs')))
def test_every_network_upgrades_and_takes_a_step(path):
    if path not in _distinct():
        pytest.skip('its network is that of another config')
    cfg = _load(path)
    size = SSD_SIZE if path.stem == 'ssd512_coco' else SIZE
    network = _network(cfg)
    layers = upgraded_layers(network)
    assert bool(layers) == (cfg.model.backbone.type == BUILDER)
    if layers:
        baseline = _baseline_of(cfg)
        network.load_state_dict(remap_state_dict(baseline.state_dict(), network.state_dict()))
        picture = torch.randn(1, 3, size, size)
        with torch.no_grad():
            for found, expected in zip(network.backbone(picture), baseline.backbone(picture), strict=True):
                assert torch.equal(found, expected)
        del baseline
    optimizer = build_optim_wrapper(network, cfg.optim_wrapper)
    MessageHub.get_current_instance().update_info('iter', 0)  # as a runner does; pictures are resized by it
    losses = network.train().train_step(random_batch(network, size, 2), optimizer)
    assert torch.isfinite(losses['loss'])
    still = [name for name, layer in layers.items() if not layer.conv_offset.weight.any()]
    assert not still, 'these offsets did not move'
