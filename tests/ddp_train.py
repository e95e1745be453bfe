"""tools/train.py for a CPU-only PyTorch: MMEngine's launcher sets a CUDA device whatever the backend is.

Each process writes what it holds after training to RANK.pth in the work directory.
"""

import os
import runpy
import sys
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

torch.cuda.set_device = lambda device: None


@HOOKS.register_module()
class SaveEachRank(Hook):
    def after_train(self, runner):
        model = runner.model
        buckets = [p.data_ptr() for p in model.parameters() if p.requires_grad]
        names = [name for name, p in model.module.named_parameters() if p.data_ptr() in buckets]
        torch.save(
            {'wrapper': type(model).__name__, 'in_buckets': names, 'state_dict': model.module.state_dict()},
            Path(runner.work_dir) / f'{os.environ["RANK"]}.pth',
        )


if __name__ == '__main__':
    sys.argv.pop(0)
    runpy.run_path(sys.argv[0], run_name='__main__')
