"""Runs of a network of two convolutions, in this process or in a fork that may be killed."""

import importlib.util
import os
import traceback
from pathlib import Path

import torch
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmdeform_upgrade.readers import read_checkpoint

from ..conftest import ROOT
from .conftest import _number


def run(cfg, *hooks, **changes):
    """Train in this process."""
    DefaultScope._instance_dict.clear()
    cfg = cfg.copy()
    cfg.merge_from_dict(changes)
    cfg.custom_hooks = [*hooks, *cfg.custom_hooks]
    cfg.experiment_name = f'tiny{next(_number)}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def in_child(function):
    """Run it in a fork; returns the process's id."""
    process = os.fork()
    if process == 0:
        try:
            function()
            os._exit(0)
        except SystemExit as error:
            os._exit(int(error.code))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return process


def ended(process):
    """How it ended: the exit status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def train_tool(cfg, *args):
    """tools/train.py in a fork."""
    path = f'{cfg.work_dir}.py'
    cfg.dump(path)
    spec = importlib.util.spec_from_file_location('train_tool', ROOT / 'tools' / 'train.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return in_child(lambda: tool.command_line.run(tool.main, [path, '--work-dir', cfg.work_dir, *args]))


def same(one, other):
    """Whether two checkpoints go on in the same way, to the bit."""
    parts = [
        {key: checkpoint[key] for key in ('state_dict', 'optimizer', 'param_schedulers')}
        for checkpoint in map(read_checkpoint, (one, other))
    ]
    tensors = [[value for _, value in sorted(_flat(part))] for part in parts]
    return len(tensors[0]) == len(tensors[1]) and all(map(torch.equal, *tensors))


def _flat(value, name=''):
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(inner, f'{name}.{key}')
    elif isinstance(value, (torch.Tensor, int, float)) and not isinstance(value, bool):
        yield name, torch.as_tensor(value)


def scalars_log(runner):
    return next(Path(runner.log_dir).glob('*.log')).read_text()
