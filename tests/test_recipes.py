"""Every setting of docs/recipes.md reaches a run, merged into an upgrade's config as a reader would."""

import re

import pytest
import torch
from mmengine.config import Config

from mmdeform_upgrade import load_baseline

from .conftest import ROOT
from .test_runs.conftest import _plain_config_texts, build_runner, short_cfg  # noqa: F401

PAGE = (ROOT / 'docs' / 'recipes.md').read_text(encoding='utf8')
SETTINGS = dict(re.findall(r'^## ([^\n]+)\n\n```python\n(.*?)```', PAGE, re.M | re.S))


def _merged(cfg, title):
    cfg.optim_wrapper.optimizer.weight_decay = 0.05
    cfg.merge_from_dict(Config.fromstring(SETTINGS[title], '.py').to_dict())
    return cfg


def test_the_page_has_settings_to_try():
    assert {'Warm-up', 'Averaged weights', 'Gradients and precision', 'Watching the offsets'} <= set(SETTINGS)


@pytest.mark.parametrize('title', list(SETTINGS))
def test_a_setting_trains(title, short_cfg):  # noqa: F811
    cfg = _merged(short_cfg, title)
    runner = build_runner(cfg)
    runner.train()
    after, before = runner.model.state_dict(), load_baseline(cfg.load_from)
    moved = {name for name, value in after.items() if not torch.equal(value, before.get(name, torch.zeros_like(value)))}
    assert any('conv_offset' in name for name in moved) and all(value.isfinite().all() for value in after.values())
    if title == 'Averaged weights':
        saved = torch.load(f'{runner.work_dir}/epoch_1.pth', weights_only=False)
        assert saved['ema_state_dict'] and not torch.equal(
            saved['state_dict']['bbox_head.cls_convs.0.0.weight'], after['bbox_head.cls_convs.0.0.weight']
        )
