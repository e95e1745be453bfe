"""Every setting of docs/recipes.md reaches a run, merged into an upgrade's config as a reader would."""

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from mmdeform_upgrade import load_baseline
from mmdeform_upgrade.mm.preflight import build_network

from .conftest import ROOT
from .test_runs.conftest import _plain_config_texts, build_runner, short_cfg  # noqa: F401

PAGE = (ROOT / 'docs' / 'recipes.md').read_text(encoding='utf8')
SETTINGS = dict(re.findall(r'^## ([^\n]+)\n\n```python\n(.*?)```', PAGE, re.M | re.S))


def _groups(cfg):
    """Learning rate and decay of each parameter by its name."""
    network = build_network(cfg)
    optimizer = build_optim_wrapper(network, cfg.optim_wrapper).optimizer
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(parameter)]: group for group in optimizer.param_groups for parameter in group['params']}


def _merged(cfg, title):
    cfg.optim_wrapper.optimizer.weight_decay = 0.05
    cfg.merge_from_dict(Config.fromstring(SETTINGS[title], '.py').to_dict())
    return cfg


def test_the_page_has_every_kind_of_setting():
    assert list(SETTINGS) == [
        'Rates',
        'Warm-up',
        'Frozen weights',
        'Averaged weights',
        'Gradients and precision',
        'Watching it',
    ]


def test_rates_and_decay_reach_the_offsets(short_cfg):  # noqa: F811
    groups = _groups(_merged(short_cfg, 'Rates'))
    offset, other = (groups[f'backbone.layer4.1.conv2.{name}weight'] for name in ('conv_offset.', ''))
    assert offset['lr'] == pytest.approx(0.00005) and offset['weight_decay'] == 0 and other['lr'] == 0.0005


def test_a_longer_key_replaces_what_another_says(short_cfg):  # noqa: F811
    keys = eval(re.search(r'custom_keys=(\{.backbone.*?\)\})', PAGE).group(1))
    assert len(keys) == 2
    short_cfg.optim_wrapper.paramwise_cfg = dict(custom_keys=keys)
    groups = _groups(short_cfg)
    rates = {name: groups[f'backbone.layer4.1.conv2.{name}weight']['lr'] for name in ('conv_offset.', '')}
    assert rates == {'conv_offset.': pytest.approx(0.001), '': pytest.approx(0.001)}


@pytest.mark.parametrize('title', list(SETTINGS))
def test_a_setting_trains(title, short_cfg):  # noqa: F811
    cfg = _merged(short_cfg, title)
    runner = build_runner(cfg)
    runner.train()
    after, before = runner.model.state_dict(), load_baseline(cfg.load_from)
    moved = {name for name, value in after.items() if not torch.equal(value, before.get(name, torch.zeros_like(value)))}
    assert any('conv_offset' in name for name in moved) and all(value.isfinite().all() for value in after.values())
    if title == 'Frozen weights':
        assert all('conv_offset' in name for name in moved)
    if title == 'Averaged weights':
        saved = torch.load(f'{runner.work_dir}/epoch_1.pth', weights_only=False)
        assert saved['ema_state_dict'] and not torch.equal(
            saved['state_dict']['bbox_head.cls_convs.0.0.weight'], after['bbox_head.cls_convs.0.0.weight']
        )
