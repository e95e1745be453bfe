"""Every config of the repository loads, builds and holds what it says."""
import pytest
from mmengine.config import Config

from mmdeform_upgrade.hooks import upgraded_layers
from mmdeform_upgrade.schedule import Length

from .conftest import ROOT, build

LEAVES = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: str(p.relative_to(ROOT / 'configs')))
def test_config_builds(path):
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None
    build(cfg)
    assert Length.of(cfg).total > 0
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.type


def test_the_papers_three_experiments_differ_in_nothing_else():
    names = ('ssd/ssd512_r50_240e_voc0712.py', 'ssd/ssd512_r50-dcn_240e_voc0712.py', 'ssd512_upgrade.py')
    baseline, retrained, upgrade = (Config.fromfile(ROOT / 'configs' / name) for name in names)
    optimizer = dict(type='SGD', lr=0.001, momentum=0.8, weight_decay=5e-4)
    assert baseline.optim_wrapper.optimizer == retrained.optim_wrapper.optimizer == optimizer
    schedules = [(c.train_cfg.max_epochs, *c.param_scheduler[0].milestones) for c in (baseline, retrained, upgrade)]
    assert schedules == [(240, 160, 200), (240, 160, 200), (60, 40, 50)]
    for cfg in (retrained, upgrade):
        cfg.model.backbone.init_cfg = None
    layers = [list(upgraded_layers(build(cfg))) for cfg in (retrained, upgrade)]
    assert layers[0] == layers[1] == [f'backbone.layer4.{i}.conv2' for i in range(3)]
    assert baseline.train_dataloader == retrained.train_dataloader == upgrade.train_dataloader
    datasets = baseline.train_dataloader.dataset.datasets
    assert [d.ann_file for d in datasets] == [f'VOC{y}/ImageSets/Main/trainval.txt' for y in (2007, 2012)]
    assert baseline.val_dataloader.dataset.ann_file == 'VOC2007/ImageSets/Main/test.txt'
    assert baseline.val_dataloader.dataset.data_root == 'data/VOCdevkit/'


def test_leaves_are_short():
    for path in LEAVES:
        if path.parent.name in ('demo', 'composite'):
            continue  # a data set of their own
        settings = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith('#')]
        assert len(settings) <= 10, path
