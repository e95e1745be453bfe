import copy

import pytest
from mmengine.config import Config

from mmdeform_upgrade import find_targets, shorten_schedule, upgrade_config
from mmdeform_upgrade.config import control_changes, upgrade_changes
from mmdeform_upgrade.config.text import config_text, inheriting_text
from mmdeform_upgrade.errors import ConfigError, TargetError
from mmdeform_upgrade.layers import upgraded_layers

from ..conftest import MMDET_CONFIGS, ROOT, build

BASELINE = ROOT / 'configs/ssd/ssd512_r50_240e_voc0712.py'


def test_upgrade_config_is_the_papers_third_experiment():
    load_from = 'work_dirs/ssd512_r50_240e_voc0712/epoch_240.pth'
    upgraded = upgrade_config(Config.fromfile(BASELINE), load_from=load_from, offset_optimizer='same')
    expected = Config.fromfile(ROOT / 'configs/ssd512_upgrade.py')
    for key in (
        'model',
        'train_cfg',
        'param_scheduler',
        'optim_wrapper',
        'custom_hooks',
        'load_from',
        'custom_imports',
        'train_dataloader',
    ):
        assert upgraded[key] == expected[key], key


def test_the_baselines_config_is_not_changed():
    cfg = Config.fromfile(BASELINE)
    before = cfg.pretty_text
    upgrade_config(cfg, load_from='x.pth')
    assert cfg.pretty_text == before


def test_inherited_hooks_and_imports_are_kept():
    cfg = Config.fromfile(MMDET_CONFIGS / 'yolox/yolox_s_8xb8-300e_coco.py')
    cfg.custom_imports = dict(imports=['json'], allow_failed_imports=True)
    upgraded = upgrade_config(cfg, load_from='x.pth')
    assert [hook.type for hook in upgraded.custom_hooks] == [
        'YOLOXModeSwitchHook',
        'SyncNormHook',
        'EMAHook',
        'DeformUpgradeHook',
    ]
    assert upgraded.custom_hooks[0].num_last_epochs == 4
    assert upgraded.custom_imports == dict(imports=['mmdeform_upgrade', 'json'], allow_failed_imports=True)


def test_the_control_sees_the_batches_of_the_upgrade():
    cfg = Config.fromfile(MMDET_CONFIGS / 'yolox/yolox_s_8xb8-300e_coco.py')
    changes = control_changes(cfg, load_from='x.pth', epoch_ratio=0.25)
    hooks = [hook['type'] for hook in changes['custom_hooks']]
    assert hooks == ['YOLOXModeSwitchHook', 'SyncNormHook', 'EMAHook', 'RunGuardHook']
    assert changes['custom_hooks'][0]['num_last_epochs'] == 4
    assert 'mmdeform_upgrade' in changes['custom_imports']['imports'] and 'model' not in changes
    cfg.custom_hooks = [dict(type='RunGuardHook')]
    assert 'custom_hooks' not in control_changes(cfg, load_from='x.pth', epoch_ratio=0.25), 'not twice'


@pytest.mark.parametrize('name', ['fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 'rtmdet/rtmdet_s_8xb32-300e_coco.py'])
def test_the_control_keeps_the_baselines_rules_of_rates(name):
    cfg = Config.fromfile(MMDET_CONFIGS / name)
    assert any(rule.startswith('bias_') for rule in cfg.optim_wrapper.paramwise_cfg)
    control = copy.deepcopy(cfg)
    control.merge_from_dict(control_changes(cfg, load_from='x'))
    assert control.optim_wrapper == cfg.optim_wrapper
    control.merge_from_dict(control_changes(cfg, load_from='x', lr_mult=0.5))
    assert control.optim_wrapper.pop('optimizer').lr == cfg.optim_wrapper.optimizer.lr / 2
    assert control.optim_wrapper == {key: value for key, value in cfg.optim_wrapper.items() if key != 'optimizer'}


@pytest.mark.parametrize('name', ['retinanet/retinanet_r50_fpn_1x_coco.py', 'pvt/retinanet_pvt-t_fpn_1x_coco.py'])
def test_a_baseline_brings_its_weights_so_nothing_is_downloaded(name):
    cfg = Config.fromfile(MMDET_CONFIGS / name)
    assert cfg.model.backbone.init_cfg.checkpoint
    control = copy.deepcopy(cfg)
    control.merge_from_dict(control_changes(cfg, load_from='x'))
    for again in (upgrade_config(cfg, load_from='x'), upgrade_config(cfg, load_from='x', part='neck'), control):
        assert again.model.backbone.init_cfg is None


def test_whatever_asks_for_pretrained_weights_is_told_to_ask_for_none():
    given = dict(type='Pretrained', checkpoint='y.pth')
    parts = dict(
        type='A',
        init_cfg=[dict(type='Normal'), given],
        pretrained=True,
        init=dict(init_cfg=dict(type='Normal', override=dict(type='Xavier', name='a'))),
        stem=dict(init_cfg=dict(type='Normal', override=[dict(given, name='a')])),
    )
    cfg = Config(dict(train_cfg=dict(max_epochs=4), model=dict(type='M', pretrained='x.pth', backbone=parts)))
    model = dict(pretrained=None, backbone=dict(init_cfg=None, pretrained=False, stem=dict(init_cfg=None)))
    assert control_changes(cfg, load_from='x')['model'] == model


@pytest.mark.parametrize(
    'part,targets,expected',
    [
        ('backbone', 'last:2', ['backbone.layer4.1.conv2', 'backbone.layer4.2.conv2']),
        ('neck', ['fpn_convs.0.conv'], ['neck.fpn_convs.0.conv']),
        ('bbox_head', r'(cls|reg)_convs\.3\.conv', ['bbox_head.cls_convs.3.conv', 'bbox_head.reg_convs.3.conv']),
    ],
)
def test_backbones_necks_and_heads_build_upgraded(part, targets, expected):
    cfg = Config.fromfile(MMDET_CONFIGS / 'retinanet/retinanet_r50_fpn_1x_coco.py')
    cfg.model.backbone.init_cfg = None
    plain = build(cfg)
    upgraded = build(upgrade_config(cfg, load_from='x.pth', part=part, targets=targets))
    assert list(upgraded_layers(upgraded)) == expected
    assert type(upgraded.get_submodule(part)) is type(plain.get_submodule(part))
    assert [k for k in upgraded.state_dict() if 'conv_offset' not in k] == list(plain.state_dict())


def test_basic_blocks_work_where_the_hosts_switch_asserts():
    cfg = Config.fromfile(MMDET_CONFIGS / 'retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg.model.backbone.init_cfg = None
    assert len(upgraded_layers(build(upgrade_config(cfg, load_from='x')))) == 3


def test_the_hosts_own_dcn_switch_takes_the_conv_type():
    cfg = Config.fromfile(MMDET_CONFIGS / 'retinanet/retinanet_r50_fpn_1x_coco.py')
    cfg.model.backbone.update(init_cfg=None, dcn=dict(type='ZeroOffsetDCN'), stage_with_dcn=(False, False, False, True))
    switched = build(cfg)
    cfg.model.backbone.update(dcn=None, stage_with_dcn=(False,) * 4)
    assert list(switched.state_dict()) == list(build(upgrade_config(cfg, load_from='x')).state_dict())


# _base_ = 'mmdet::...' marks inherited dicts with the library's scope.
def test_configs_inherited_across_libraries_build(tmp_path):
    path = tmp_path / 'cross.py'
    path.write_text(
        "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\ndefault_scope = 'mmseg'\n"
        'model = dict(backbone=dict(init_cfg=None))\n'
    )
    cfg = Config.fromfile(path)
    assert len(upgraded_layers(build(upgrade_config(cfg, load_from='x.pth')))) == 3


def test_the_short_file_says_the_same(tmp_path):
    settings = dict(load_from='x.pth', targets='last:6', epoch_ratio=0.5, exclude=['layer3.5.conv2'])
    for base in (BASELINE, MMDET_CONFIGS / 'yolox/yolox_s_8xb8-300e_coco.py'):
        cfg, out = Config.fromfile(base), tmp_path / 'out.py'
        out.write_text(inheriting_text(str(base), str(out), upgrade_changes(cfg, **settings)))
        assert Config.fromfile(out).to_dict() == upgrade_config(cfg, **settings).to_dict()


def test_a_config_in_a_linked_folder_finds_its_base(tmp_path):
    for folder in ('project', 'elsewhere/configs'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'project/configs').symlink_to(tmp_path / 'elsewhere/configs')
    base, out = tmp_path / 'project/base.py', tmp_path / 'project/configs/up.py'
    base.write_text('a = 1\n')
    out.write_text(inheriting_text(str(base), str(out), dict(b=2)))
    assert Config.fromfile(out).to_dict() == dict(a=1, b=2)


@pytest.mark.parametrize('change', [upgrade_config, shorten_schedule])
def test_what_is_no_config_is_named(change):
    settings = dict(load_from='x.pth') if change is upgrade_config else {}
    with pytest.raises(
        ConfigError, match="expected a config, got 'base.py': read its file with mmengine.config.Config"
    ):
        change('base.py', **settings)
    cfg = Config.fromfile(BASELINE)
    assert change(cfg.to_dict(), **settings).train_cfg == change(cfg, **settings).train_cfg


def test_the_guard_is_named_where_it_is_asked_for_and_once():
    cfg = Config.fromfile(BASELINE)
    hooks = [hook['type'] for hook in upgrade_changes(cfg, load_from='x.pth', guard=True)['custom_hooks']]
    assert hooks == ['RunGuardHook', 'DeformUpgradeHook']
    assert 'custom_hooks' not in control_changes(cfg, load_from='x.pth', guard=False)
    cfg.custom_hooks = [dict(type='RunGuardHook', finite_interval=5)]
    assert upgrade_config(cfg, load_from='x.pth', guard=True).custom_hooks[0].finite_interval == 5


def test_offsets_alone_is_two_keys_of_the_model():
    model = upgrade_changes(Config.fromfile(BASELINE), load_from='x.pth', train='offsets')['model']
    assert (model['type'], model['base_type']) == ('TrainOffsets', 'SingleStageDetector')
    again = Config.fromfile(BASELINE)
    again.merge_from_dict(upgrade_changes(again, load_from='x.pth', train='offsets'))
    settings = dict(load_from='y.pth', part='neck', targets='in:extra_layers')
    assert 'type' not in upgrade_changes(again, train='offsets', **settings)['model']
    with pytest.raises(ConfigError, match="the config trains the offsets alone .*: give train='offsets'"):
        upgrade_changes(again, **settings)
    with pytest.raises(ConfigError, match="train='weights': expected 'all' or 'offsets'"):
        upgrade_changes(Config.fromfile(BASELINE), load_from='x.pth', train='weights')


@pytest.mark.parametrize(
    'change,message',
    [
        (dict(part='nek'), "no part 'nek' .*: it has .*backbone, neck, bbox_head"),
        (dict(epoch_ratio=2), r'epoch_ratio=2 is not in \(0, 1\]'),
        (
            dict(part='bbox_head.loss_bbox'),
            r"\(OwnLoss\) has a setting of its own named 'deform_groups', which DeformUpgrade",
        ),
    ],
)
def test_bad_settings_get_one_clear_error(change, message):
    cfg = Config.fromfile(BASELINE)
    cfg.model.bbox_head.loss_bbox = dict(type='OwnLoss', deform_groups=2)
    with pytest.raises(ConfigError, match=message):
        upgrade_config(cfg, load_from='x.pth', **change)


def test_an_upgraded_config_is_not_upgraded_again():
    with pytest.raises(ConfigError, match="model.backbone is upgraded already .base_type='ResNet', targets='last:3'"):
        upgrade_config(Config.fromfile(ROOT / 'configs/ssd512_upgrade.py'), load_from='x.pth')


@pytest.mark.parametrize(
    'backbone,error,message',
    [
        (dict(frozen_stages=4), TargetError, r'of ResNet .frozen_stages=4.*layer4.0.conv2: its weight is frozen'),
        (dict(base_type='ResNot'), ConfigError, "base_type 'ResNot' is not registered in the scope 'mmdet'"),
        (dict(base_type=None), ConfigError, 'needs base_type'),
        (dict(targets='last:99'), TargetError, 'asks for 99 convolutions, and there are 17'),
        (dict(targets=['layer4.2.conv9']), TargetError, "Did you mean 'layer4.2.conv2'"),
    ],
)
def test_builder_errors_are_the_packages_own(backbone, error, message):
    cfg = Config.fromfile(ROOT / 'configs/ssd512_upgrade.py')
    cfg.model.backbone.update(backbone)
    with pytest.raises(error, match='(?s)' + message):
        build(cfg)


def test_darknets_frozen_stages_are_seen_before_training():
    cfg = Config.fromfile(MMDET_CONFIGS / 'yolo/yolov3_d53_8xb8-320-273e_coco.py')
    cfg.model.backbone.update(init_cfg=None, frozen_stages=5)
    target = ['conv_res_block4.res7.conv2.conv']
    assert find_targets(build(cfg).backbone, target) == target
    with pytest.raises(TargetError, match='conv_res_block4.res7.conv2.conv: its weight is frozen'):
        build(upgrade_config(cfg, load_from='x.pth', targets=target))


def test_an_unknown_targets_message_reaches_the_user_unwrapped():
    cfg = Config.fromfile(ROOT / 'configs/ssd512_upgrade.py')
    cfg.model.backbone.targets = r'layer9\..*'
    with pytest.raises(TargetError, match='Upgradable, in order: conv1, layer1.0.conv2'):
        build(cfg)


@pytest.mark.parametrize('changes', [upgrade_changes, control_changes])
def test_the_beginning_of_a_training_is_not_trained_again(changes):
    """TOOD assigns by anchors in its first four epochs; BoxInst and DropBlock begin with less of a loss."""
    cfg = Config.fromfile(MMDET_CONFIGS / 'tood' / 'tood_r50_fpn_1x_coco.py')
    cfg.model.neck.drop = dict(type='DropBlock', warmup_iters=2000)
    cfg.model.mask_head = dict(type='BoxInstMaskHead')
    model = changes(cfg, load_from='x.pth')['model']
    assert model['train_cfg'] == dict(initial_epoch=0) and cfg.model.train_cfg.initial_epoch == 4
    assert model['neck'] == dict(drop=dict(warmup_iters=1)) and model['mask_head'] == dict(warmup_iters=1)


def test_the_beginning_of_a_training_is_found_in_lists():
    """A ResNet's plugins, of which DropBlock waits 2 000 steps by itself, and several heads."""
    cfg = Config.fromfile(MMDET_CONFIGS / 'tood' / 'tood_r50_fpn_1x_coco.py')
    plugin = dict(cfg=dict(type='DropBlock', drop_prob=0.1, block_size=3), position='after_conv2')
    cfg.model.backbone.plugins = [dict(plugin, stages=(False, True)), plugin]
    cfg.model.heads = [dict(type='A', initial_epoch=4), dict(type='B', kept=(1, 2))]
    changed = upgrade_config(cfg, load_from='x.pth').model
    assert [part.cfg.warmup_iters for part in changed.backbone.plugins] == [1, 1]
    assert changed.backbone.plugins[0].stages == (False, True) and changed.backbone.plugins[1].cfg.block_size == 3
    assert changed.heads == [dict(type='A', initial_epoch=0), dict(type='B', kept=(1, 2))]
    assert 'warmup_iters' not in cfg.model.backbone.plugins[0].cfg and cfg.model.heads[0].initial_epoch == 4


def test_a_setting_that_is_none_is_replaced(tmp_path):
    base, out = tmp_path / 'base.py', tmp_path / 'up.py'
    inherited = MMDET_CONFIGS / 'retinanet' / 'retinanet_r18_fpn_1x_coco.py'
    base.write_text(f"_base_ = ['{inherited}']\ncustom_imports = None\nlog_processor = None\ndefault_hooks = None\n")
    cfg, settings = Config.fromfile(base), dict(load_from='x.pth', max_iters=400)
    full = upgrade_config(cfg, **settings)
    out.write_text(config_text(str(base), str(out), cfg, upgrade_changes(cfg, **settings)))
    assert Config.fromfile(out).to_dict() == full.to_dict()
    assert full.log_processor == dict(by_epoch=False) and full.default_hooks.checkpoint.by_epoch is False


@pytest.mark.parametrize('scope,expected', [(None, 'mmdet.ResNet'), ('mmdet', 'ResNet')])
def test_a_component_has_the_scope_of_the_model_around_it(scope, expected):
    cfg = dict(model=dict(type='mmdet.RetinaNet', backbone=dict(type='ResNet', depth=18)), train_cfg=dict(max_epochs=4))
    cfg.update(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), **({'default_scope': scope} if scope else {}))
    assert upgrade_changes(cfg, load_from='x.pth')['model']['backbone']['base_type'] == expected
