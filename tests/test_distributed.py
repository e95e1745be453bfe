"""Two gloo processes through tools/train.py."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmdeform_upgrade.readers import read_checkpoint

from .conftest import ROOT


@pytest.mark.slow  # tests/test_runs/test_parallel.py has the same without the tool
def test_offsets_are_synchronised_by_ddp(tiny_upgrade, tmp_path):
    config = tiny_upgrade.with_name('tiny_ddp.py')
    config.write_text(
        f"_base_ = ['{tiny_upgrade.name}']\n"
        "custom_hooks = [dict(type='DeformUpgradeHook'), dict(type='SaveEachRank')]\n"
        "env_cfg = dict(dist_cfg=dict(backend='gloo'))\n"
        "model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)\n"
        'train_cfg = dict(max_epochs=1)\n'
    )
    script = Path(__file__).with_name('ddp_train.py')
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc_per_node=2',
        script,
        ROOT / 'tools/train.py',
        config,
        '--work-dir',
        tmp_path,
        '--launcher',
        'pytorch',
    ]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    ranks = [torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in (0, 1)]
    assert [rank['wrapper'] for rank in ranks] == ['MMDistributedDataParallel'] * 2
    offsets = [key for key in ranks[0]['state_dict'] if 'conv_offset' in key]
    assert len(offsets) == 6 and set(offsets) <= set(ranks[0]['in_buckets'])
    for key in offsets:
        # The ranks saw different pictures: only synchronised gradients leave them with the same offsets.
        assert ranks[0]['state_dict'][key].abs().sum() > 0
        assert torch.equal(ranks[0]['state_dict'][key], ranks[1]['state_dict'][key])
    assert 'deform_upgrade' in read_checkpoint(tmp_path / 'epoch_1.pth')['meta']
