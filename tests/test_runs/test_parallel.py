"""Two processes, MMEngine's FlexibleRunner and its strategies, synchronised batch norms."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm

from mmdeform_upgrade.checkpoint import load_baseline
from mmdeform_upgrade.layers import upgraded_layers
from mmdeform_upgrade.readers import read_checkpoint

from ..conftest import ROOT, relative_error
from .conftest import build_runner, offsets, train
from .ddp_runs import ADAM, RUNS


@pytest.fixture(scope='module')
def frozen_config(segmentor_files, tmp_path_factory):
    """The segmentor with batch norm's statistics frozen, so that a step is the same however it is shared out."""
    cfg = Config.fromfile(segmentor_files[0])
    cfg.model.backbone.norm_eval = True
    cfg.train_dataloader.batch_size, cfg.train_dataloader.dataset.indices = 2, 8
    cfg.dump(path := tmp_path_factory.mktemp('parallel') / 'frozen.py')
    return path


@pytest.fixture(scope='module')
def runs(frozen_config, tmp_path_factory):
    """What each of two processes held after each of the runs of ddp_runs.py."""
    folder = tmp_path_factory.mktemp('ddp')
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc_per_node=2',
        Path(__file__).with_name('ddp_runs.py'),
        frozen_config,
        folder,
    ]
    result = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    held = {name: [torch.load(folder / name / f'{rank}.pth', weights_only=True) for rank in (0, 1)] for name in RUNS}
    return folder, held


@pytest.fixture(scope='module')
def alone(frozen_config, tmp_path_factory):
    """The same training in one process, on batches of twice the size."""
    cfg = Config.fromfile(frozen_config)
    cfg.work_dir = str(tmp_path_factory.mktemp('alone') / 'work')
    runner = train(cfg, **{'train_dataloader.batch_size': 4})
    return runner.record.losses, runner.model.state_dict()


@pytest.mark.parametrize('name', ['ddp', 'static_graph', 'flexible', 'fsdp', 'fsdp_checkpointed'])
def test_two_processes_compute_what_one_computes_on_the_doubled_batch(runs, alone, name):
    first, second = runs[1][name]
    assert 'error' not in first, first['error']
    assert first['wrapper'] == ('MMFullyShardedDataParallel' if 'fsdp' in name else 'MMDistributedDataParallel')
    losses, state = alone
    assert [(a + b) / 2 for a, b in zip(first['losses'], second['losses'], strict=True)] == pytest.approx(
        losses, rel=1e-5
    )
    result = {key.removeprefix('module.'): value for key, value in first['state_dict'].items()}
    assert result.keys() == state.keys() and all(value.any() for value in offsets(result).values())
    assert max(relative_error(result[key].double(), state[key].double()) for key in state) < 1e-4


@pytest.mark.parametrize('name', ['ddp_adam', 'fsdp_adam'])
def test_offsets_have_their_own_steps_in_two_processes(runs, frozen_config, tmp_path, name):
    cfg = Config.fromfile(frozen_config)
    cfg.work_dir = str(tmp_path / 'work')
    runner = train(cfg, **{'train_dataloader.batch_size': 4, **ADAM})
    alone = runner.model.state_dict()
    first, second = runs[1][name]
    assert 'error' not in first, first['error']
    result = {key.removeprefix('module.'): value for key, value in first['state_dict'].items()}
    for key, value in offsets(result).items():
        assert (value - alone[key]).norm() < 0.05 * alone[key].norm(), key
        assert value.equal(second['state_dict'].get(key, second['state_dict'].get(f'module.{key}')))
    assert relative_error(result['backbone.conv1.weight'], alone['backbone.conv1.weight']) < 1e-3
    saved = read_checkpoint(runs[0] / name / 'epoch_1.pth')['optimizer']
    kinds = {tuple(sorted(state)) for state in saved['state'].values()}
    assert kinds == {('exp_avg', 'exp_avg_sq', 'step'), ('momentum_buffer',)}
    limited, expected = (
        [group['offset_lr'] for group in groups if group.get('offsets')]
        for groups in (saved['param_groups'], runner.optim_wrapper.optimizer.param_groups)
    )
    assert limited == pytest.approx(expected, rel=0.02) and max(limited) < 1e-3, 'max_step is of all pictures of a step'


@pytest.mark.parametrize('name', ['ddp', 'static_graph', 'flexible', 'whole', 'resumed'])
def test_both_processes_end_with_the_same_weights(runs, name):
    first, second = (rank['state_dict'] for rank in runs[1][name])
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_resume_of_two_processes_is_exact_though_each_draws_its_own(runs):
    """With dropout, which differs from process to process."""
    whole, resumed = runs[1]['whole'], runs[1]['resumed']
    for rank in (0, 1):
        assert len(whole[rank]['losses']) == 4 and resumed[rank]['losses'] == whole[rank]['losses'][2:]
        assert all(
            torch.equal(value, resumed[rank]['state_dict'][key]) for key, value in whole[rank]['state_dict'].items()
        )
    assert whole[0]['losses'] != whole[1]['losses']


def test_a_resume_under_fsdp_is_exact_with_the_strategy_of_the_docs(runs):
    for rank, (whole, resumed) in enumerate(zip(runs[1]['fsdp_whole'], runs[1]['fsdp_resumed'], strict=True)):
        assert 'error' not in resumed, (rank, resumed['error'])
        assert len(whole['losses']) == 4 and resumed['losses'] == whole['losses'][2:]
        assert all(torch.equal(value, resumed['state_dict'][key]) for key, value in whole['state_dict'].items())


def test_mmengine_alone_resumes_no_optimizer_under_fsdp(runs):
    """MMEngine's limit, with plain SGD: once this fails, the strategy in the docs can go."""
    assert all("unhashable type: 'dict'" in rank['error'] for rank in runs[1]['fsdp_plain_resumed'])


def test_offsets_alone_train_in_two_processes(runs, segmentor_files):
    """Without ``find_unused_parameters``; batch norms in training mode would differ from process to process."""
    states = [
        {key.removeprefix('module.'): value for key, value in rank['state_dict'].items()}
        for rank in runs[1]['offsets_alone']
    ]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert all(value.any() for value in offsets(states[0]).values())
    baseline = load_baseline(segmentor_files[1])
    assert all(torch.equal(states[0][key], value) for key, value in baseline.items())
    assert states[0].keys() - baseline.keys() == offsets(states[0]).keys()


@pytest.mark.parametrize('name', ['flexible', 'fsdp', 'fsdp_checkpointed'])
def test_strategies_save_complete_upgraded_checkpoints(runs, alone, name):
    path = runs[0] / name / 'epoch_1.pth'
    assert list(read_checkpoint(path)['meta']['deform_upgrade']['layers']) == [
        f'backbone.layer2.{layer}' for layer in ('0.conv2', '1.conv1', '1.conv2')
    ]
    state = load_baseline(path)
    assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in alone[1].items()}
    assert max(relative_error(value, alone[1][key]) for key, value in offsets(state).items()) < 1e-4


def test_synchronised_batch_norms_need_gpus(runs):
    """PyTorch's refusal, whatever the network is; the conversion itself is tested below."""
    assert all('SyncBatchNorm layers only work with GPU modules' in rank['error'] for rank in runs[1]['sync_bn'])


def test_converting_batch_norms_leaves_the_upgraded_layers_alone(segmentor_cfg):
    model = build_runner(segmentor_cfg).model.eval()
    torch.nn.init.normal_(model.backbone.layer2[1].conv2.conv_offset.weight, std=0.05)
    picture = torch.randn(1, 3, 96, 96)
    layers, keys, expected = upgraded_layers(model), list(model.state_dict()), model(picture)
    converted = convert_sync_batchnorm(model, 'torch')
    assert any(type(module).__name__ == 'SyncBatchNorm' for module in converted.modules())
    assert upgraded_layers(converted) == layers and list(converted.state_dict()) == keys
    reverted = revert_sync_batchnorm(converted)
    assert upgraded_layers(reverted) == layers and list(reverted.state_dict()) == keys
    assert torch.equal(reverted.eval()(picture), expected)


FLEXIBLE = dict(runner_type='FlexibleRunner', strategy=dict(type='SingleDeviceStrategy'), env_cfg=dict())


def test_flexible_runner_on_one_device_is_the_runner(segmentor_cfg):
    plain = train(segmentor_cfg)
    flexible = train(segmentor_cfg, **FLEXIBLE)
    assert type(flexible).__name__ == 'FlexibleRunner'
    assert flexible.record.losses == plain.record.losses
    state = flexible.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.model.state_dict().items())
    resumed = train(
        segmentor_cfg,
        **FLEXIBLE,
        resume=True,
        load_from=f'{flexible.work_dir}/epoch_1.pth',
        **{'train_cfg.max_epochs': 2},
    )
    whole = train(segmentor_cfg, **{'train_cfg.max_epochs': 2})
    assert resumed.record.losses == whole.record.losses[4:]
