"""What of this package a config keeps when its upgrade goes."""

import mmengine.registry as registries
import pytest
from mmengine.config import Config
from mmengine.registry import Registry

from mmdeform_upgrade.config import upgrade_config
from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.release.rewrite import OWN_TYPES, with_layers

from ..conftest import ROOT


def test_every_registered_type_is_known():
    found = {
        name
        for registry in vars(registries).values()
        if isinstance(registry, Registry) and registry is not registries.FUNCTIONS  # no type of a config
        for name, registered in registry.module_dict.items()
        if getattr(registered, '__module__', '').startswith('mmdeform_upgrade')
    }
    assert {'DeformUpgrade', 'BFloat16Hook', 'WideSSDNeck'} <= found
    assert found - {'offsets_apart'} == set(OWN_TYPES), 'the constructor alone calls offsets_apart'


def test_upgraded_heads_of_a_cascade_go_back_one_by_one():
    heads = [dict(type='DeformUpgrade', base_type='FCNMaskHead', targets='last:1', num_classes=n) for n in (2, 3)]
    cfg = Config(dict(model=dict(type='CascadeRCNN', roi_head=dict(type='CascadeRoIHead', mask_head=heads))))
    back = with_layers(cfg, {'roi_head.mask_head.1.convs.3.conv': 1}).model.roi_head.mask_head
    assert back[0] == dict(type='FCNMaskHead', num_classes=2)
    assert back[1] == dict(heads[1], targets={'convs.3.conv': 1})
    with pytest.raises(ConfigError, match="'mask_head'.: it has a list of them: give each type='DeformUpgrade'"):
        upgrade_config(
            Config(dict(cfg, train_cfg=dict(max_epochs=1))), load_from='baseline.pth', part='roi_head.mask_head'
        )


@pytest.mark.parametrize(
    'hooks,imports',
    [
        ([dict(type='BFloat16Hook'), dict(type='RunGuardHook')], 'mmdeform_upgrade'),
        ([dict(type='EMAHook')], None),
    ],
)
def test_hooks_for_any_training_stay_with_their_import(hooks, imports):
    cfg = Config.fromfile(ROOT / 'benchmarks/compare/configs/faster-rcnn_r50-caffe-dc5_12e_cutouts.py')
    cfg.custom_hooks = hooks
    upgrade = upgrade_config(cfg, load_from='baseline.pth', targets='res5')
    upgrade.model.update(type='TrainOffsets', base_type=upgrade.model.type)
    upgrade.custom_hooks = [*upgrade.custom_hooks, dict(type='OffsetLoggerHook')]
    back = with_layers(upgrade, {})
    assert back.model.type == 'FasterRCNN' and 'base_type' not in back.model
    assert back.custom_hooks == hooks and back.model.backbone.type == 'ResNet' and back.load_from is None
    assert (back.get('custom_imports') or {}).get('imports', [None])[0] == imports
