# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""How MMEngine reads checkpoints through the package's readers: without running anything that they hold."""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, urlopen
from zipfile import BadZipFile

import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader, Runner
from torch.optim import Optimizer
from tqdm import tqdm

from ..checkpoint import import_checkpoint
from ..config import SCHEME
from ..config.own_run import inside, outputs_in
from ..errors import CheckpointError, ConfigError, UpgradeError, naming
from ..files import atomic_write
from ..importers import OWN_NAMES, Imported, dataset_meta
from ..offsets import OffsetOptimizer
from ..readers import drop_inert, kind_of, read_checkpoint, split_key

_WEB = ('http://', 'https://')


def local_path(path: str) -> str:
    """A file on this machine for a ``load_from``: a path as it is, an http(s) address downloaded once a machine.

    Raises:
        ConfigError: another scheme, which only MMEngine's own readers know.
        CheckpointError: the download failed.
    """
    path = os.path.expanduser(os.fspath(path).removeprefix(SCHEME))
    if path.startswith(_WEB):
        address, key = split_key(path)
        return _downloaded(address) + (f'::{key}' if key else '')
    if '://' in path:
        raise ConfigError(f'{path!r}: a checkpoint is read from a local file or an http(s) address; download it first')
    return path


def refuse_to_overwrite(load_from: str, work_dir: str, cfg: Mapping[str, Any], checkpoint_hooks: Iterable[Any]) -> None:
    """Raise ConfigError where a run would write over the baseline, its run's checkpoints, or what that reported.

    ``checkpoint_hooks`` are the run's ``CheckpointHook``s, or their settings.
    """
    folder, name = os.path.split(os.path.realpath(split_key(load_from.removeprefix(SCHEME))[0]))
    of_a_run = os.path.isfile(os.path.join(folder, 'last_checkpoint'))
    written = {work_dir: of_a_run}
    for hook in checkpoint_hooks:
        out = getattr(hook, 'out_dir', None) or work_dir
        if out != work_dir:
            out = os.path.join(out, os.path.basename(os.path.normpath(work_dir)))  # as CheckpointHook does
        template = re.escape(getattr(hook, 'filename_tmpl', None) or '{}.pth').replace(r'\{\}', r'(?:epoch_|iter_)?\d+')
        written[out] = of_a_run or bool(re.fullmatch(rf'{template}|best_.+\.pth', name))
    for out, over_it in written.items():
        if over_it and os.path.realpath(out) == folder:
            raise ConfigError(
                f'load_from={load_from} lies in {out}, where this run would write its own checkpoints over the '
                "baseline's: give another work_dir (--work-dir)"
            )
    for setting, path in outputs_in(cfg, folder) if of_a_run else ():
        if not inside(path, work_dir):
            raise ConfigError(
                f'{setting}={path} lies in the folder of the baseline, where this run would write over what the '
                f'baseline reported: give another place, as in --cfg-options {setting}={os.path.join(work_dir, "NAME")}'
            )


def lacking_for_resume(checkpoint: Mapping[str, Any]) -> list[str]:
    """What a checkpoint would need to be one of an interrupted run."""
    meta = checkpoint.get('meta')
    lacking = [key for key in ('epoch', 'iter') if not isinstance(meta, Mapping) or key not in meta]
    return [*lacking, *(() if 'message_hub' in checkpoint else ('message_hub',))]


def check_optimizer_state(runner, checkpoint: Mapping[str, Any]) -> None:
    """Load the optimizer state of a run that is resumed before MMEngine does, which takes that of another optimizer.

    Raises:
        CheckpointError: it is of another one.
    """
    wrapper: Any = getattr(runner, 'optim_wrapper', None)
    saved = checkpoint.get('optimizer')
    optimizer = getattr(wrapper, 'optimizer', None)  # OptimWrapperDict has several
    if not (isinstance(runner, Runner) and runner._resume and isinstance(optimizer, Optimizer) and saved):
        return  # strategies load states of their own forms
    parts = (optimizer.base, optimizer.offsets) if isinstance(optimizer, OffsetOptimizer) else (optimizer,)
    try:
        wrapper.load_state_dict(dict(saved))  # it takes out what it has read
        for part in parts:
            if type(part).__module__.startswith('torch.optim.'):  # a copy of others may lack what they keep
                _try_step(part)
    except (KeyError, RuntimeError, TypeError, ValueError, UpgradeError) as error:
        names = ' and '.join(type(part).__name__ for part in parts)
        why = f'the optimizer state has no {error} (for {names})' if isinstance(error, KeyError) else error
        raise CheckpointError(
            f'resume: {why}: resume with the optim_wrapper that the run was started with, or start anew from its weights, '
            'given as load_from, with resume=False'
        ) from error


def _try_step(optimizer: Optimizer) -> None:
    """Take a step with the first parameter's state on a copy: PyTorch loads whatever it is given, and misses it there."""
    group = next((group for group in optimizer.param_groups if group['params']), None)
    if group is None:
        return
    parameter = torch.nn.Parameter(group['params'][0].detach().clone())
    parameter.grad = torch.zeros_like(parameter)
    trial = copy.copy(optimizer)
    trial.state = defaultdict(dict, {parameter: copy.deepcopy(optimizer.state.get(group['params'][0], {}))})
    trial.param_groups = [{**group, 'params': [parameter]}]
    trial.step()


def meta_of(imported: Imported, meta: Any) -> dict[str, Any]:
    """``meta`` of an imported baseline: the classes, where they are known, and what was done."""
    dataset = dataset_meta(meta)
    if imported.classes:
        dataset.setdefault('classes', imported.classes)
    return {**({'dataset_meta': dataset} if dataset else {}), 'imported': imported.summary()}


def load_from_safe_reader(filename: str, map_location: Any = None) -> dict[str, Any]:
    """MMEngine's loader of ``baseline://PATH``, which also imports, and of plain paths and addresses.

    It leaves out what the reader did not know, so that a scheduler that is resumed keeps its own functions, and
    ``meta['config']``, a program's text that MMEngine runs when a training is resumed. Tensors come on the CPU.
    What an imported file had for resuming (optimizer, epoch) is left out: it is of another library or version.
    """
    path = local_path(filename)
    checkpoint = read_checkpoint(path)
    if filename.startswith(SCHEME):
        with naming(path):
            imported = import_checkpoint(checkpoint)
        if imported.format == OWN_NAMES:
            checkpoint = {'meta': {}, **checkpoint, 'state_dict': imported.state_dict}  # mmseg wants some meta
        else:
            print_log(f'Imported {imported}', logger='current')
            kept = {key: value for key, value in checkpoint.items() if key == 'ema_state_dict'}
            meta = meta_of(imported, checkpoint.get('meta'))
            checkpoint = {**kept, 'meta': meta, 'state_dict': imported.state_dict}
    given = checkpoint.get('meta')
    if isinstance(given, Mapping) and 'config' in given:
        checkpoint['meta'] = {key: value for key, value in given.items() if key != 'config'}
    return drop_inert(checkpoint)


def read_checkpoints_safely() -> None:
    """Have MMEngine read every file and http(s) address in this process as ``baseline://`` does, but for the import.

    That serves ``load_from``, ``resume``, ``init_cfg`` and whatever else loads a checkpoint.
    """
    CheckpointLoader.register_scheme(('', *_WEB), load_from_safe_reader, force=True)


def _downloaded(address: str) -> str:
    """The file of an address in PyTorch's cache; addresses with one file name are different files."""
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints', hashlib.sha256(address.encode()).hexdigest()[:16])
    target, problem = os.path.join(folder, os.path.basename(urlparse(address).path)), 'by the first process'
    if os.path.basename(target) == '':
        raise CheckpointError(f'{address} names no file: give the address of a checkpoint')
    if get_local_rank() == 0 and not os.path.isfile(target):
        try:
            _download(address, target)
        except (OSError, ValueError, HTTPException, BadZipFile) as error:  # HTTPError and URLError are OSErrors
            problem = str(error)
    barrier()
    if not os.path.isfile(target):
        raise CheckpointError(f'{address} could not be downloaded ({problem}): open it in a browser, or give a file')
    return target


def _download(address: str, target: str) -> None:
    """All of a file or nothing; PyTorch's function keeps what it has when the connection ends early."""
    request = Request(address, headers={'User-Agent': 'torch.hub'})
    with urlopen(request) as answer, atomic_write(target) as temporary:
        length = int(answer.headers.get('Content-Length') or 0)
        with open(temporary, 'wb') as file, tqdm(total=length or None, unit='B', unit_scale=True) as bar:
            while block := answer.read(1 << 17):
                file.write(block)
                bar.update(len(block))
        if length and os.path.getsize(temporary) != length:
            raise OSError('the connection ended early; try again')
        kind_of(temporary)  # or a page that was sent instead would be kept
