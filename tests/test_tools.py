"""The command line as users call it."""

import json
import os
import re
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner.checkpoint import load_from_local

from mmdeform_upgrade.checkpoint import file_sha256
from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.readers import read_checkpoint

from .conftest import ROOT, build, run_tool


def _fails(name, *args, **options):
    result = run_tool(name, *args, check=False, **options)
    assert result.returncode == 2 and 'Traceback' not in result.stderr, result.stderr[-2000:]
    return result.stderr


@pytest.fixture(scope='module')
def ssd512_checkpoint(tmp_path_factory):
    cfg = Config.fromfile(ROOT / 'configs/ssd/ssd512_r50_240e_voc0712.py')
    cfg.model.backbone.init_cfg = None
    path = tmp_path_factory.mktemp('ssd') / 'epoch_240.pth'
    torch.save({'meta': {}, 'state_dict': build(cfg).state_dict()}, path)
    return path


def test_upgrade_prints_a_plan_that_can_be_checked_and_writes_nothing_when_dry(ssd512_checkpoint, tmp_path):
    config = ROOT / 'configs/ssd/ssd512_r50_240e_voc0712.py'
    plan = run_tool('upgrade.py', config, ssd512_checkpoint, '--dry-run', '--out', tmp_path / 'out.py').stdout
    for text in (
        'layer4.2.conv2',
        '2 359 296 -> 2 442 240',
        'offset biases 18',
        '390 tensors fit',
        '6 offset tensors start at zero',
        '240 epochs; SGD lr 0.001',
        'milestones [160, 200]',
        '60 epochs; SGD lr 0.001',
        'milestones [40, 50]',
    ):
        assert text in plan, text
    assert list(tmp_path.iterdir()) == []


def test_upgrade_writes_a_short_inheriting_config_and_the_control(tiny_config, tiny_baseline, tmp_path):
    out, control = tmp_path / 'sub' / 'up.py', tmp_path / 'control.py'
    run_tool(
        'upgrade.py',
        tiny_config,
        tiny_baseline,
        '--out',
        out,
        '--control',
        control,
        '--epoch-ratio',
        0.5,
        '--targets',
        'layer4.1.conv1',
        'layer4.1.conv2',
        '--deform-groups',
        2,
    )
    upgraded, plain = Config.fromfile(out), Config.fromfile(control)
    assert upgraded.model.backbone.targets == ['layer4.1.conv1', 'layer4.1.conv2']
    assert upgraded.model.backbone.deform_groups == 2
    assert all(cfg.train_cfg.max_epochs == 4 for cfg in (upgraded, plain))
    # without the hook it is the scheme that reads what the tool has checked
    assert upgraded.load_from == str(tiny_baseline) and plain.load_from == f'baseline://{tiny_baseline}'
    assert plain.model == Config.fromfile(tiny_config).model
    assert len(out.read_text().splitlines()) < 60


@pytest.mark.parametrize('prefix', ['_orig_mod.', 'module._orig_mod.'])
def test_a_control_starts_from_what_was_checked_under_mmengines_own_runner(
    tiny_config, tiny_baseline, tmp_path, monkeypatch, prefix
):
    held = torch.load(tiny_baseline, weights_only=False)['state_dict']
    torch.save({'model': {prefix + key: value for key, value in held.items()}}, tmp_path / 'model.pth')
    files = (tmp_path / 'model.pth', '--out', tmp_path / 'up.py', '--control', tmp_path / 'control.py')
    run_tool('upgrade.py', tiny_config, *files)
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())
    CheckpointLoader.register_scheme('', load_from_local, force=True)  # as where no tool or hook ran
    cfg = Config.fromfile(tmp_path / 'control.py')
    cfg.merge_from_dict(dict(custom_hooks=[], work_dir=str(tmp_path / 'run')))
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, held[name]), name


def test_a_home_folder_that_the_shell_left_is_found_and_protected(tiny_config, tiny_upgrade, tmp_path):
    torch.save({'meta': {}, 'state_dict': build(Config.fromfile(tiny_upgrade)).state_dict()}, tmp_path / 'up.pth')
    (tmp_path / 'there.onnx').write_text('mine')
    (tmp_path / 'config.py').write_text(f'_base_ = [{str(tiny_upgrade)!r}]')
    at_home = dict(env={'HOME': str(tmp_path)}, cwd=tmp_path)
    export = ('deployment/export_onnx.py', '~/config.py', '~/up.pth', '~/there.onnx')
    assert f"'{tmp_path}/there.onnx' exists; give --force" in _fails(*export, **at_home)
    assert (tmp_path / 'there.onnx').read_text() == 'mine'
    run_tool('model_converters/publish_model.py', '~/up.pth', '~/zoo', '--config=~/config.py', **at_home)
    assert {'.pth', '.safetensors'} <= {path.suffix for path in (tmp_path / 'zoo').iterdir()}
    assert not (tmp_path / '~').exists()


def test_no_run_writes_over_its_baseline(tiny_config, tiny_baseline, tmp_path):
    config, folder = tmp_path / 'det.py', tmp_path / 'work_dirs' / 'det'
    config.write_text(f'_base_ = [{str(tiny_config)!r}]\n')
    folder.mkdir(parents=True)
    shutil.copy(tiny_baseline, folder / 'epoch_1.pth')
    checkpoint = 'work_dirs/det/epoch_1.pth'
    outputs = ('--out', 'up/det.py', '--control', 'control/det.py')
    said = run_tool('upgrade.py', config, checkpoint, *outputs, cwd=tmp_path).stdout
    written = [Config.fromfile(tmp_path / name) for name in outputs[1::2]]
    assert [cfg.work_dir for cfg in written] == ['work_dirs/det-upgrade', 'work_dirs/det-control']
    assert 'up/det.py work_dirs/det-upgrade/epoch_' in said
    for name in outputs[1::2]:
        refused = _fails('train.py', name, '--work-dir', 'work_dirs/det', cwd=tmp_path)
        assert "would write its own checkpoints over the baseline's" in refused
        assert [path.name for path in folder.iterdir()] == ['epoch_1.pth']
    cfg = written[1]  # as another train.py runs it
    cfg.work_dir, cfg.load_from = str(folder), str(folder / 'epoch_1.pth')
    with pytest.raises(ConfigError, match="would write its own checkpoints over the baseline's"):
        Runner.from_cfg(cfg).train()
    assert file_sha256(folder / 'epoch_1.pth') == file_sha256(tiny_baseline)


def test_the_outputs_of_the_baseline_stay_as_they_are(tiny_config, tiny_baseline, tmp_path):
    base = tmp_path / 'work_dirs' / 'base'
    shutil.copytree(tiny_baseline.parent, base)
    dumped = next(base.glob('*.py'))
    cfg = Config.fromfile(dumped)
    cfg.work_dir = 'work_dirs/base'
    dump = dict(type='DumpDetResults', out_file_path='work_dirs/base/pred.pkl')
    cfg.val_evaluator = [cfg.val_evaluator, dump]
    cfg.vis_backends[0].save_dir = cfg.visualizer.vis_backends[0].save_dir = 'work_dirs/base/vis'
    cfg.default_hooks.checkpoint.out_dir = 'work_dirs/base'
    cfg.dump(dumped)
    (base / 'pred.pkl').write_text('of the baseline')
    os.replace(base / 'epoch_1.pth', base / 'published.pth')
    before = {path: path.stat().st_mtime_ns for path in base.rglob('*')}
    arguments = ('work_dirs/base/published.pth', '--out', 'up.py', '--control', 'control.py', '--max-iters', 2)
    said = run_tool('upgrade.py', dumped, *arguments, cwd=tmp_path).stdout
    assert 'output: val_evaluator.1.out_file_path work_dirs/base/pred.pkl -> work_dirs/up/pred.pkl' in said
    for name in ('up', 'control'):
        run_tool('train.py', f'{name}.py', cwd=tmp_path)
        assert {'pred.pkl', 'vis', 'last_checkpoint'} <= {
            path.name for path in (tmp_path / 'work_dirs' / name).iterdir()
        }
        back = ('--cfg-options', 'val_evaluator.1.out_file_path=work_dirs/base/pred.pkl')
        refused = _fails('train.py', f'{name}.py', '--work-dir', 'w', *back, cwd=tmp_path)
        assert 'val_evaluator.1.out_file_path=work_dirs/base/pred.pkl lies in the folder of the baseline' in refused
        assert 'as in --cfg-options val_evaluator.1.out_file_path=w/NAME' in refused
        refused = _fails('train.py', f'{name}.py', '--work-dir', 'work_dirs/base', cwd=tmp_path)
        assert "would write its own checkpoints over the baseline's" in refused
    assert {path: path.stat().st_mtime_ns for path in base.rglob('*')} == before


def test_offsets_are_not_lost_where_the_config_has_no_place_for_them(tiny_config, tiny_upgrade, tmp_path):
    network = build(Config.fromfile(tiny_upgrade))
    torch.save({'meta': {}, 'state_dict': network.state_dict()}, tmp_path / 'up.pth')
    lost = 'the network of the config lacks its offset branches .backbone.layer4.0.conv2.conv_offset.weight'
    named = f'CheckpointError: {tmp_path}/up.pth is the checkpoint of an upgrade, and {lost}'
    assert re.search(named, _fails('test.py', tiny_config, tmp_path / 'up.pth', '--work-dir', tmp_path / 'w'))
    options = ('--work-dir', tmp_path / 'w', '--cfg-options', f'load_from={tmp_path}/up.pth')
    assert re.search(lost, _fails('train.py', tiny_config, *options))
    assert re.search(lost, _fails('deployment/export_onnx.py', tiny_config, tmp_path / 'up.pth', tmp_path / 'up.onnx'))
    wrong = (tmp_path / 'up.pth', tmp_path / 'zoo', '--config', tiny_config)
    assert 'unexpected in the checkpoint (6)' in _fails('model_converters/publish_model.py', *wrong)
    assert not list(tmp_path.glob('zoo/*')) and not (tmp_path / 'up.onnx').exists()


def test_what_a_tool_reads_and_configs_of_others_are_not_overwritten(
    tiny_config, tiny_upgrade, tiny_baseline, tmp_path
):
    network = build(Config.fromfile(tiny_upgrade))
    torch.save({'meta': {}, 'state_dict': network.state_dict()}, tmp_path / 'up.pth')
    before = file_sha256(tmp_path / 'up.pth')
    converters = 'model_converters/'
    for name, *arguments in (
        ('import_baseline.py', 'up.pth', 'up.pth'),
        ('revert.py', tiny_upgrade, 'up.pth', 'up.pth'),
        ('delta.py', 'apply', 'up.pth::state_dict', tiny_baseline, 'up.pth'),
    ):
        assert 'is a file to read; name another' in _fails(converters + name, *arguments, '--force', cwd=tmp_path)
    assert file_sha256(tmp_path / 'up.pth') == before
    (tmp_path / 'mine.py').write_text('seed = 1')
    for flag in ('--out', '--control'):
        refused = _fails('upgrade.py', tiny_config, tiny_baseline, flag, 'mine.py', cwd=tmp_path)
        assert "'mine.py' is there already, and this tool did not write it" in refused
    (tmp_path / 'own.py').write_text('import mmdeform_upgrade  # and lines of my own')
    for _ in range(2):
        run_tool('upgrade.py', tiny_config, tiny_baseline, '--out', 'own.py', cwd=tmp_path)
    written = (tmp_path / 'own.py').read_text()
    run_tool('upgrade.py', tiny_config, tiny_baseline, '--out', 'own.py', '--epoch-ratio', 1, cwd=tmp_path)
    assert (tmp_path / 'own.py.bak').read_text() == 'import mmdeform_upgrade  # and lines of my own'
    assert (tmp_path / 'own.py.bak2').read_text() == written and not (tmp_path / 'own.py.bak3').exists()
    same = ('make', tiny_baseline, f'{tiny_baseline}::state_dict', tmp_path / 'd.safetensors')
    assert 'there is no difference to write' in _fails(converters + 'delta.py', *same)


def test_the_written_config_trains_and_tests(tiny_config, tiny_baseline, tmp_path):
    out = tmp_path / 'up.py'
    run_tool('upgrade.py', tiny_config, tiny_baseline, '--out', out, '--targets', r'layer4\.1\..*')
    run_tool('train.py', out, '--work-dir', tmp_path / 'w', '--cfg-options', 'train_cfg.max_epochs=1')
    predictions = tmp_path / 'p.pkl'
    run_tool('test.py', out, tmp_path / 'w' / 'epoch_1.pth', '--work-dir', tmp_path / 't', '--out', predictions)
    assert predictions.stat().st_size > 0
    record = json.loads(next((tmp_path / 't').glob('*/*.json')).read_text().splitlines()[0])
    assert 0 <= record['pascal_voc/mAP'] <= 1


def test_amp_and_auto_scale_lr_reach_the_runner(tiny_upgrade, tmp_path):
    result = run_tool(
        'train.py',
        tiny_upgrade,
        '--work-dir',
        tmp_path,
        '--auto-scale-lr',
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'auto_scale_lr.base_batch_size=8',
    )
    assert re.search(r'lr: 7\.5000e-04', result.stdout), 'half the rate for half the pictures'


def test_a_key_chooses_the_weights_and_the_training_starts_from_them(tiny_config, tiny_baseline, tmp_path):
    checkpoint = read_checkpoint(tiny_baseline)
    weights = checkpoint['state_dict']
    torch.save(
        {'student': {name: 2 * value for name, value in weights.items()}, 'teacher': weights}, tmp_path / 'a.pth'
    )
    out = tiny_config.with_name('by_key.py')
    refused = run_tool('upgrade.py', tiny_config, tmp_path / 'a.pth', '--out', out, check=False)
    assert (
        refused.returncode == 2 and "under 'student' or 'teacher': choose with FILE::NAME, or --key" in refused.stderr
    )
    run_tool('upgrade.py', tiny_config, tmp_path / 'a.pth', '--key', 'teacher', '--out', out)
    options = ('train_cfg.max_epochs=1', 'train_cfg.val_interval=9', 'optim_wrapper.optimizer.lr=0.0')
    run_tool('train.py', out, '--work-dir', tmp_path / 'work', '--cfg-options', *options)
    trained = read_checkpoint(tmp_path / 'work' / 'epoch_1.pth')
    assert torch.equal(trained['state_dict']['backbone.conv1.weight'], weights['backbone.conv1.weight'])
    provenance = trained['meta']['deform_upgrade']
    assert provenance['baseline'] == 'a.pth::teacher' and provenance['baseline_sha256'] == file_sha256(
        tmp_path / 'a.pth'
    )


def test_predictions_go_into_a_pickle_file_or_nothing_starts(tmp_path):
    error = _fails('test.py', 'a.py', 'b.pth', '--out', 'p.json', cwd=tmp_path)
    assert "'p.json': expected a name that ends in .pkl" in error and not list(tmp_path.iterdir())


def test_a_process_without_a_gpu_of_its_own_is_refused(tmp_path):
    (tmp_path / 'config.py').write_text('')
    started = {'RANK': '0', 'LOCAL_RANK': '99', 'WORLD_SIZE': '100'}
    result = run_tool('train.py', 'config.py', '--launcher', 'pytorch', cwd=tmp_path, env=started, check=False)
    assert result.returncode == 2 and re.match(
        r'ConfigError: --launcher pytorch: each process needs a GPU of its own, and PyTorch finds \d+ .*without --launcher',
        result.stderr,
    ), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['config.py']


def test_shell_launchers_say_how_they_are_used():
    import subprocess

    for name in ('dist_train.sh', 'slurm_train.sh'):
        result = subprocess.run(['bash', str(ROOT / 'tools' / name)], capture_output=True, text=True, check=False)
        assert result.returncode == 2 and 'usage:' in result.stderr


@pytest.mark.parametrize(
    'name,arguments,message',
    [
        ('compose_shapes.py', ['--train', '-1'], 'DataError: '),
        ('compose_cutouts.py', ['--cutouts', 'nowhere', '--backgrounds', 'nowhere'], 'DataError: '),
        ('collect_debian_cutouts.py', ['--stamps', 'nowhere'], 'DataError: '),
    ],
)
def test_data_tools_report_errors_as_all_others_do(name, arguments, message, tmp_path, capsys):
    import runpy

    from mmdeform_upgrade.mm import command_line

    main = runpy.run_path(str(ROOT / 'benchmarks/datasets' / name))['main']
    with pytest.raises(SystemExit, match='2'):
        command_line.run(main, ['--out', str(tmp_path / 'out'), *arguments])
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / 'out').exists()


def test_a_ready_made_upgrade_is_listed_and_written_once(tmp_path):
    text = run_tool('upgrade.py', '--list').stdout
    names = [line.split()[0] for line in text.splitlines()]
    assert len(names) >= 10 and 'published baseline 37.4 box AP' in text
    refused = _fails('upgrade.py', 'faster-rcnn_r50_fpn_coco', '--dry-run', '--targets', 'res5', cwd=tmp_path)
    assert 'a ready-made upgrade, which takes no --targets, --dry-run' in refused and not list(tmp_path.iterdir())
    run_tool('upgrade.py', 'faster-rcnn_r50_fpn_coco', cwd=tmp_path)
    cfg = Config.fromfile(tmp_path / 'faster-rcnn_r50_fpn_coco.py')
    assert cfg.model.backbone.type == 'DeformUpgrade' and cfg.train_cfg.max_epochs == 3
    again = run_tool('upgrade.py', 'faster-rcnn_r50_fpn_coco', cwd=tmp_path, check=False)
    assert again.returncode == 2 and 'is there already' in again.stderr
    wrong = run_tool('upgrade.py', 'faster-rcnn_r50_fpn_voc', cwd=tmp_path, check=False)
    assert wrong.returncode == 2 and "did you mean 'faster-rcnn_r50_fpn_coco'" in wrong.stderr
