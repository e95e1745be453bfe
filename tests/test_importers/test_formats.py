"""A foreign baseline all the way into a run: recognised, checked, loaded, recorded."""

import copy
import zipfile

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmdeform_upgrade import load_baseline
from mmdeform_upgrade.checkpoint import import_baseline
from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.files import write_safetensors
from mmdeform_upgrade.importers import OWN_NAMES, import_state_dict
from mmdeform_upgrade.importers.formats import FORMATS
from mmdeform_upgrade.importers.gluoncv import SSD
from mmdeform_upgrade.readers import kind_of, read_checkpoint

from ..conftest import ROOT, build
from . import detectron2_names, foreign, gluoncv_files


def _same(state, trained):
    assert set(trained) - set(state) <= {name for name in trained if 'num_batches' in name}
    for name, value in state.items():
        if 'conv_offset' not in name and 'num_batches' not in name:
            assert torch.equal(value, trained[name]), name


def _upgraded(path):
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(type='DeformUpgrade', base_type='ResNet', targets='last:2')
    cfg.custom_hooks = [dict(type='DeformUpgradeHook')]
    return cfg


def test_with_a_model_the_result_loads_strictly(tiny_retinanet, torchvision_file, trained):
    model = build(Config.fromfile(tiny_retinanet))
    state = load_baseline(torchvision_file, model)
    model.load_state_dict(state, strict=True)
    _same(model.state_dict(), trained)
    upgraded = build(_upgraded(tiny_retinanet))
    assert load_baseline(torchvision_file, upgraded).keys() == state.keys()
    _same(load_baseline(torchvision_file), trained)
    assert import_baseline(torchvision_file, model).format == 'torchvision RetinaNet with FPN'


def test_the_container_does_not_matter(tiny_retinanet, torchvision_state, trained, tmp_path):
    write_safetensors(tmp_path / 'a.pth', torchvision_state)
    model = build(Config.fromfile(tiny_retinanet))
    model.load_state_dict(load_baseline(tmp_path / 'a.pth', model), strict=True)
    _same(model.state_dict(), trained)


@pytest.mark.parametrize('zipped', [False, True])
def test_files_of_mxnet_are_told_by_their_content(tmp_path, zipped):
    path = tmp_path / 'weights.pth'
    gluoncv_files.write_ssd(path)
    if zipped:  # as GluonCV's model zoo serves it
        with zipfile.ZipFile(tmp_path / 'zoo.pth', 'w') as archive:
            archive.write(path, 'ssd_512_resnet50_v1_voc-9c8b225a.params')
        path = tmp_path / 'zoo.pth'
    imported = import_baseline(path)
    assert imported.format == SSD.name and kind_of(path) == 'MXNet file'
    cfg = Config.fromfile(ROOT / 'configs' / 'gluoncv' / 'ssd512_r50_voc.py')
    cfg.model.backbone.init_cfg = None
    model = build(cfg)
    model.load_state_dict(load_baseline(path, model), strict=True)


def test_names_of_the_network_always_pass(tmp_path):
    class Bare(torch.nn.Module):
        """A network whose own names are torchvision's."""

        def __init__(self):
            super().__init__()
            for name in ('conv1', 'bn1'):
                setattr(self, name, torch.nn.BatchNorm2d(2))
            for name in ('layer1', 'layer4'):
                block = torch.nn.Module()
                block.conv1 = torch.nn.Conv2d(2, 2, 1)
                setattr(self, name, torch.nn.ModuleList([block]))

    model = Bare()
    torch.save(model.state_dict(), tmp_path / 'bare.pth')
    assert list(load_baseline(tmp_path / 'bare.pth', model)) == list(model.state_dict())
    assert import_baseline(tmp_path / 'bare.pth', model).format == OWN_NAMES
    assert {name.partition('.')[0] for name in load_baseline(tmp_path / 'bare.pth')} == {'backbone'}


def test_settings_and_keys_are_refused_in_one_error(tiny_retinanet, torchvision_state, tmp_path):
    cfg = Config.fromfile(tiny_retinanet)
    cfg.model.neck.relu_before_extra_convs = False
    cfg.model.data_preprocessor.bgr_to_rgb = False
    state = dict(torchvision_state)
    del state['backbone.body.conv1.weight'], state['head.regression_head.bbox_reg.bias']
    state['backbone.body.conv1.weight'] = torch.ones(8, 3, 5, 5)
    torch.save(state, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='a.pth: it was recognised as torchvision RetinaNet') as error:
        load_baseline(tmp_path / 'a.pth', build(cfg))
    for text in (
        'relu_before_extra_convs=True',
        'bgr_to_rgb is False',
        'missing in the checkpoint (1): bbox_head.retina_reg.bias',
        'conv1.weight: the checkpoint has (8, 3, 5',
    ):
        assert text in str(error.value), text


def test_an_unknown_format_is_an_error_only_when_it_does_not_fit(tiny_retinanet, tmp_path):
    torch.save({'features.0.weight': torch.ones(1)}, tmp_path / 'a.pth')
    assert list(load_baseline(tmp_path / 'a.pth')) == ['features.0.weight']
    with pytest.raises(CheckpointError, match='in a format that is not known .docs/formats.md'):
        load_baseline(tmp_path / 'a.pth', build(Config.fromfile(tiny_retinanet)))


def test_two_formats_at_once_are_refused():
    shapes = {**foreign.torchvision_resnet(18), **detectron2_names.caffe2_resnet()}
    state = {name: torch.empty(shape, device='meta') for name, shape in shapes.items()}
    with pytest.raises(CheckpointError, match='are those of a torchvision ResNet and of Caffe2'):
        import_state_dict(state)
    assert import_state_dict(state, network=state).format == OWN_NAMES


def test_formats_have_names_of_their_own():
    assert len({known.name for known in FORMATS}) == len(FORMATS)


def test_mmengine_loads_through_the_scheme_without_the_hook(tiny_retinanet, torchvision_file, trained, tmp_path):
    from mmdet.apis import init_detector

    address = f'baseline://{torchvision_file}'
    _same(init_detector(str(tiny_retinanet), address, device='cpu').state_dict(), trained)
    cfg = Config.fromfile(tiny_retinanet)
    cfg.work_dir, cfg.load_from = str(tmp_path), address
    cfg.experiment_name = 'scheme'
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    _same(runner.model.state_dict(), trained)


def test_init_cfg_takes_a_backbone_through_the_scheme(tmp_path):
    from mmdet.models import ResNet

    source = foreign.random_of(foreign.torchvision_resnet(18))
    torch.save(source, tmp_path / 'resnet18.pth')
    backbone = ResNet(
        18, init_cfg=dict(type='Pretrained', checkpoint=f'baseline://{tmp_path}/resnet18.pth', prefix='backbone.')
    )
    backbone.init_weights()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, source[name]), name


def _runner(cfg, work_dir, **options):
    cfg = copy.deepcopy(cfg)
    cfg.merge_from_dict(options)
    cfg.work_dir, cfg.experiment_name = str(work_dir), f'front{torch.rand(1).item()}'
    return Runner.from_cfg(cfg)


def test_a_run_starts_from_a_foreign_baseline_and_resumes_without_importing(
    tiny_retinanet, torchvision_file, trained, tmp_path
):
    cfg = _upgraded(tiny_retinanet)
    cfg.load_from = str(torchvision_file)
    runner = _runner(cfg, tmp_path / 'a', **{'optim_wrapper.optimizer.lr': 0.0})
    runner.train()
    saved = read_checkpoint(tmp_path / 'a' / 'epoch_1.pth')
    provenance = saved['meta']['deform_upgrade']
    assert provenance['baseline'] == 'weights.bin' and 'pascal_voc/mAP' in provenance['before_training']
    assert provenance['imported'] == dict(
        format='torchvision RetinaNet with FPN',
        tensors=len([name for name in trained if 'num_batches' not in name]),
        changed={'rows of the classes, background dropped': 2},
        dropped={},
    )
    _same(saved['state_dict'], trained)

    resumed = _runner(cfg, tmp_path / 'b', load_from=str(tmp_path / 'a' / 'epoch_1.pth'), resume=True)
    resumed.call_hook('before_run')
    resumed._train_loop = resumed.build_train_loop(resumed._train_loop)
    resumed.load_or_resume()
    assert resumed.epoch == 1
    with pytest.raises(CheckpointError, match='missing in the checkpoint'):
        foreign_resume = _runner(cfg, tmp_path / 'c', resume=True)
        foreign_resume.call_hook('before_run')
        foreign_resume.load_or_resume()


def test_the_hook_refuses_settings_that_change_the_numbers(tiny_retinanet, torchvision_file, tmp_path):
    cfg = _upgraded(tiny_retinanet)
    cfg.load_from = f'baseline://{torchvision_file}'
    cfg.model.neck.relu_before_extra_convs = False
    runner = _runner(cfg, tmp_path)
    with pytest.raises(CheckpointError, match='recognised as torchvision RetinaNet.*\n.*relu_before_extra_convs'):
        runner.train()
    assert runner.iter == 0
