"""A tiny upgrade whose offsets have moved, saved as a run saves it, and its baseline."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from mmdeform_upgrade.checkpoint import file_sha256, is_offset_key

from ..conftest import build

CLASSES = ('star', 'ring', 'cross', 'worm', 'crescent', 'arrow')


@pytest.fixture(scope='session')
def files(tiny_upgrade, tiny_config, tiny_baseline, tmp_path_factory):
    """``config``, ``checkpoint``, ``state_dict`` of the upgrade, and ``baseline``; its first layer stays at zero."""
    torch.manual_seed(0)
    cfg = Config.fromfile(tiny_upgrade)
    model = build(cfg)
    state_dict = model.state_dict()
    baseline = torch.load(tiny_baseline, weights_only=False)['state_dict']
    for key, value in state_dict.items():
        if not is_offset_key(key):
            value.copy_(baseline[key])
        elif key.startswith('backbone.layer4.1.conv2.') and key.endswith('bias'):
            torch.nn.init.normal_(value, std=2)
        elif key.startswith('backbone.layer4.1.conv1.') and key.endswith('bias'):
            value.fill_(0.01)
    layers = {f'backbone.layer4.{name}': 1 for name in ('0.conv2', '1.conv1', '1.conv2')}
    meta = {
        'dataset_meta': {'classes': CLASSES},
        'cfg': cfg.pretty_text,
        'epoch': 2,
        'iter': 8,
        'experiment_name': 'tiny_upgrade_20260101_000000',
        'mmengine_version': '0.10.7',
        'time': '2026',
        'deform_upgrade': {
            'baseline': 'epoch_1.pth',
            'baseline_sha256': file_sha256(tiny_baseline),
            'layers': layers,
            'versions': {'mmdeform_upgrade': '0.1.0'},
        },
    }
    path = tmp_path_factory.mktemp('release') / 'epoch_2.pth'
    torch.save(
        {
            'state_dict': state_dict,
            'meta': meta,
            'optimizer': {'state': {0: torch.ones(9)}},
            'param_schedulers': [{}],
            'message_hub': {'log_scalars': {}},
        },
        path,
    )
    return SimpleNamespace(
        config=str(tiny_upgrade),
        checkpoint=str(path),
        state_dict=state_dict,
        baseline=str(tiny_baseline),
        baseline_config=str(tiny_config),
        layers=layers,
    )
