"""tools/model_converters/import_baseline.py."""

import importlib.util
import pickle

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmdeform_upgrade.checkpoint import file_sha256, load_baseline
from mmdeform_upgrade.errors import CheckpointError, ConfigError
from mmdeform_upgrade.importers.torchvision import COCO
from mmdeform_upgrade.readers import read_checkpoint

from ..conftest import ROOT, build, run_tool
from . import detectron2_names


@pytest.fixture(scope='module')
def main():
    path = ROOT / 'tools' / 'model_converters' / 'import_baseline.py'
    spec = importlib.util.spec_from_file_location('import_baseline', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


def test_the_written_checkpoint_is_a_baseline_of_its_own(tiny_retinanet, torchvision_file, tmp_path):
    out = tmp_path / 'sub' / 'baseline.pth'
    result = run_tool('model_converters/import_baseline.py', torchvision_file, out, '--config', tiny_retinanet)
    assert (
        'torchvision RetinaNet with FPN:' in result.stdout
        and '2 changed in value, rows of the classes, background dropped' in result.stdout
    )
    assert f'written: {out}' in result.stdout
    model = build(Config.fromfile(tiny_retinanet))
    model.load_state_dict(torch.load(out, weights_only=True)['state_dict'], strict=True)
    # A second import finds nothing to do.
    again = load_baseline(out, build(Config.fromfile(tiny_retinanet)))
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    imported = read_checkpoint(out)['meta']['imported']
    assert imported['source'] == 'weights.bin' and imported['source_sha256'] == file_sha256(torchvision_file)


def test_classes_are_written_where_they_are_known(main, torchvision_state, tmp_path, capsys):
    coco = dict(torchvision_state)
    for part in ('weight', 'bias'):
        name = f'head.classification_head.cls_logits.{part}'
        coco[name] = torch.randn(9 * 91, *coco[name].shape[1:])
    old = {
        'meta': dict(mmdet_version='2.20.0', CLASSES=('a', 'b'), PALETTE=[(1, 2, 3), print], epoch=3, iter=9),
        'state_dict': {'backbone.conv1.weight': torch.ones(1)},
        'optimizer': {},
    }
    for name, checkpoint, classes, what in (
        ('coco', coco, COCO, '80 of 91 rows selected'),
        ('old', old, ('a', 'b'), 'MMDetection 2'),
        ('unknown', torchvision_state, None, 'torchvision RetinaNet'),
    ):
        torch.save(checkpoint, tmp_path / f'{name}.pth')
        main(tmp_path / f'{name}.pth', tmp_path / 'new.pth', '--force')
        saved = torch.load(tmp_path / 'new.pth', weights_only=True)  # what the reader did not know is left out
        assert set(saved) == {'meta', 'state_dict'} and 'epoch' not in saved['meta']
        assert saved['meta'].get('dataset_meta', {}).get('classes') == classes, name
        assert what in capsys.readouterr().out


def test_a_pickle_of_detectron2_is_imported(main, tmp_path):
    arrays = {name: np.full(shape, 0.5, np.float16) for name, shape in detectron2_names.resnet('').items()}
    (tmp_path / 'R-50.pkl').write_bytes(pickle.dumps({'model': arrays, '__author__': 'x'}))
    main(tmp_path / 'R-50.pkl', tmp_path / 'r50.pth')
    state = load_baseline(tmp_path / 'r50.pth')
    assert len(state) == len(arrays) and state['backbone.layer4.2.bn3.running_var'].dtype == torch.float16


def test_nothing_is_overwritten_or_left_half_written(main, torchvision_file, tiny_retinanet, tmp_path):
    out = tmp_path / 'out.pth'
    out.write_bytes(b'precious')
    with pytest.raises(ConfigError, match='exists; give --force to overwrite'):
        main(torchvision_file, out)
    with pytest.raises(ConfigError, match='is a file to read'):
        main(torchvision_file, torchvision_file, '--force')
    with pytest.raises(ConfigError, match='is a folder'):
        main(torchvision_file, tmp_path)
    with pytest.raises(ConfigError, match="there is no config file 'none.py'"):
        main(torchvision_file, out, '--force', '--config', 'none.py')
    cfg = Config.fromfile(tiny_retinanet)
    cfg.model.neck.add_extra_convs = 'on_input'
    cfg.dump(tmp_path / 'cfg.py')
    with pytest.raises(CheckpointError, match="(?s)weights.bin: it was recognised as.*add_extra_convs='on_output'"):
        main(torchvision_file, out, '--force', '--config', tmp_path / 'cfg.py')
    assert out.read_bytes() == b'precious' and len(list(tmp_path.iterdir())) == 2
    main(torchvision_file, out, '--force')
    assert len(load_baseline(out)) > 100


def test_names_that_no_importer_knows_are_not_written(main, tiny_retinanet, trained, tmp_path):
    own, other, out = tmp_path / 'own.pth', tmp_path / 'other.pth', tmp_path / 'out.pth'
    torch.save(trained, own)
    torch.save({'features.0.weight': torch.ones(1)}, other)
    for file, options, message in (
        (other, [], 'such as features.0.weight, are none that'),
        (own, [], 'are none that need an import'),
        (other, ['--config', tiny_retinanet], 'in a format that is not known'),
    ):
        with pytest.raises(CheckpointError, match=message):
            main(file, out, *options)
        assert not out.exists()
    main(own, out, '--config', tiny_retinanet)  # into the frameworks' container
    assert load_baseline(out).keys() == trained.keys()


def test_errors_are_one_message(tmp_path):
    result = run_tool('model_converters/import_baseline.py', 'a.pth', tmp_path / 'out.safetensors', check=False)
    assert result.returncode == 2 and 'expected a name that ends in .pth' in result.stderr
    (tmp_path / 'page.pth').write_text('<html>')
    result = run_tool('model_converters/import_baseline.py', tmp_path / 'page.pth', tmp_path / 'out.pth', check=False)
    assert result.returncode == 2 and result.stderr.strip().endswith(
        '(a login or error page was saved); download it again'
    )
    assert 'Traceback' not in result.stderr and not (tmp_path / 'out.pth').exists()


def test_an_upgrade_and_its_control_start_from_a_foreign_file(tiny_retinanet, torchvision_file, trained, tmp_path):
    up, control = tmp_path / 'up.py', tmp_path / 'control.py'
    plan = run_tool(
        'upgrade.py', tiny_retinanet, torchvision_file, '--out', up, '--control', control, '--epoch-ratio', 1
    ).stdout
    assert 'imported torchvision RetinaNet with FPN: ' in plan and '6 offset tensors start at zero' in plan
    for path in (up, control):
        cfg = Config.fromfile(path)
        cfg.work_dir, cfg.experiment_name = str(tmp_path / path.stem), path.stem
        runner = Runner.from_cfg(cfg)
        runner.call_hook('before_run')
        runner.load_or_resume()
        state = runner.model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in trained.items() if 'num_batches' not in name)
