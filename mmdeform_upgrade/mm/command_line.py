# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What the tools share: the flags of the MM repositories, and one way to report the package's own errors."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..checkpoint import is_offset_key, refuse_lost_offsets
from ..config import SCHEME, read_config
from ..config.settings import type_name, unwrapped_datasets
from ..errors import CheckpointError, ConfigError, UpgradeError
from .loading import check_optimizer_state, read_checkpoints_safely
from .run import whole_state_dict

_LAUNCHERS = {  # what starts the processes, and a variable that it sets in them
    'pytorch': ('torchrun', 'RANK'),
    'slurm': ('srun', 'SLURM_PROCID'),
    'mpi': ('mpirun', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}
_HOME = re.compile(r'^(--[\w-]+=|)~(?=/|$)')
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that every MM tool has."""
    from mmengine.config import DictAction

    class Options(DictAction):
        def __call__(self, parser, namespace, values, option_string=None):
            for value in values:
                if '=' not in value:
                    parser.error(f'{option_string} {value}: expected KEY=VALUE, without spaces around the sign')
            super().__call__(parser, namespace, values, option_string)

    result = argparse.ArgumentParser(description=description)
    result.add_argument('config', help="config file; also PACKAGE::FILE, as in 'mmseg::fcn/NAME.py'")
    result.add_argument('--work-dir', help='folder for logs and checkpoints')
    result.add_argument('--cfg-options', nargs='+', action=Options, help='settings to override, as key=value pairs')
    result.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    result.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return result


def load_config(args: argparse.Namespace) -> Config:
    """The config that the common flags ask for."""
    program, variable = _LAUNCHERS.get(args.launcher, ('', ''))
    if variable and variable not in os.environ:
        raise ConfigError(
            f'--launcher {args.launcher}: {program} has not started this process ({variable} is not set); run '
            'tools/dist_train.sh CONFIG GPUS or tools/slurm_train.sh, or leave --launcher out'
        )
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    if args.launcher == 'pytorch' and get_device() in ('cpu', 'cuda', 'mps'):
        _take_gpu()
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(args.config).stem)
    return cfg


def check_loop(cfg: Config, loop: str) -> None:
    """Refuse a config that lacks what one of a runner's loops needs (``'train'``, ``'val'``, ``'test'``)."""
    needed = (f'{loop}_dataloader', f'{loop}_cfg', 'optim_wrapper' if loop == 'train' else f'{loop}_evaluator')
    if missing := [key for key in needed if cfg.get(key) is None]:
        verb = 'validate' if loop == 'val' else loop
        raise ConfigError(f'the config has no {", ".join(missing)}, without which there is nothing to {verb}: set them')


def _take_gpu() -> None:
    """What MMEngine's launcher does first in each process, whatever the backend is."""
    try:
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    except (AssertionError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f'--launcher pytorch: each process needs a GPU of its own, and PyTorch finds {torch.cuda.device_count()} '
            'here: start as many processes as there are GPUs. On a CPU run tools/train.py without --launcher: one '
            'process uses all cores'
        ) from error


def set_amp(cfg: Config) -> None:
    """``--amp``: train with automatic mixed precision."""
    if get_device() == 'cpu':
        raise ConfigError(
            '--amp needs a GPU, and there is none here: leave it out, or train on a CPU in bfloat16 with '
            "custom_hooks=[dict(type='BFloat16Hook'), ...]"
        )
    wrapper = cfg.optim_wrapper
    if (kind := type_name(wrapper.get('type', 'OptimWrapper'))) not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ConfigError(f'--amp knows OptimWrapper, the config has {kind}')
    wrapper.type = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')


def set_auto_scale_lr(cfg: Config) -> None:
    """``--auto-scale-lr``: the rate follows the number of pictures in a step."""
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise ConfigError(
            '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=N) in the config, the batch size '
            'that its learning rate was chosen for'
        )
    cfg.auto_scale_lr.enable = True


def set_resume(cfg: Config, resume: str | None) -> None:
    """``--resume``: 'auto' takes the latest whole checkpoint of the work directory, or starts anew where there is none.

    Raises:
        CheckpointError: the given checkpoint, or every one in the work directory, cannot be resumed from.
    """
    from .guard import find_resumable, why_not_resumable

    if not resume:
        return
    latest = find_resumable(cfg.work_dir) if resume == 'auto' else resume
    if resume != 'auto' and '://' not in resume and not os.path.isdir(resume) and (why := why_not_resumable(resume)):
        raise CheckpointError(
            f'{resume}: {why}. --resume continues an interrupted run, without a path from the '
            'last whole checkpoint of the work directory; give a baseline or a finished network as '
            'load_from, without --resume'
        )
    if latest:
        cfg.resume, cfg.load_from = True, latest


def set_visualization(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """``--show`` and ``--show-dir``: draw the predictions of the test."""
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise ConfigError('--show and --show-dir need default_hooks.visualization in the config')
    hook.update(draw=True, show=show, wait_time=wait_time)
    if show_dir and type_name(hook.type) == 'DetVisualizationHook':
        hook.test_out_dir = show_dir
    elif show_dir:
        cfg.visualizer.save_dir = show_dir


def set_tta(cfg: Config) -> None:
    """``--tta``: test with the augmentations that the config describes."""
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise ConfigError('--tta needs tta_model and tta_pipeline in the config')
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    for dataset in unwrapped_datasets(cfg.test_dataloader.dataset):
        dataset.pipeline = cfg.tta_pipeline


def one_or_several(words: list[str]) -> str | list[str]:
    """Targets as they were typed: one alone may be any of their forms."""
    return words[0] if len(words) == 1 else words


def pickle_file(path: str) -> str:
    """An argument that names a pickle file."""
    if not path.endswith(('.pkl', '.pickle')):
        raise argparse.ArgumentTypeError(f'{path!r}: expected a name that ends in .pkl')
    return path


class FittingCheckpoint(Hook):
    """Refuses an upgrade's checkpoint for a network without its layers, of which MMEngine would load the rest, and the
    state of another optimizer."""

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Compare names."""
        names = [key for key in checkpoint.get('state_dict') or {} if is_offset_key(key)]
        if names:  # whole_state_dict gathers what is sharded
            refuse_lost_offsets(str(runner._load_from).removeprefix(SCHEME), names, whole_state_dict(runner))
        check_optimizer_state(runner, checkpoint)


def build_runner(cfg: Config) -> Any:
    """The runner of a config."""
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.register_hook(FittingCheckpoint())
    return runner


def run(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> None:
    """Call a tool's ``main``, in which all checkpoints are read safely; the package's own errors, a file that is not
    there, a full disk or a path that cannot be written become one message and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')  # a console's encoding may lack what a name or a path has
    read_checkpoints_safely()
    argv = sys.argv[1:] if argv is None else argv
    try:
        # quoted, or behind an equals sign, the shell leaves it
        main([_HOME.sub(lambda found: f'{found[1]}{os.path.expanduser("~")}', text) for text in argv])
    except UpgradeError as error:
        print(f'{type(error).__name__}: {printable(str(error))}', file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (*_NO_ROOM, *_NO_PLACE, errno.ENOENT):
            raise
        hint = 'make room' if error.errno in _NO_ROOM else 'name a place that can be written to'
        if error.errno == errno.ENOENT:  # most often of the data set
            hint = f'correct the path (relative ones start at {os.getcwd()})'
        print(f'OSError: {error}: what was written before stays; {hint} and start again', file=sys.stderr)
        sys.exit(2)


def printable(text: str) -> str:
    """``text`` without control characters other than line breaks: names in a file could steer the terminal."""
    return ''.join(c if c.isprintable() or c == '\n' else repr(c)[1:-1] for c in text)
