# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Where a checkpoint is: MMEngine schemes of the package, and files on this machine."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Mapping

import torch

from ..checkpoint import import_checkpoint
from ..config import SCHEME
from ..errors import CheckpointError, ConfigError
from ..importers import OWN_NAMES, Imported, dataset_meta
from ..readers import read_checkpoint

# Read as safely, imported by nobody: what a run is resumed from, and what the hook imports with the network at hand.
AS_IT_IS = 'safe://'


def without_scheme(path: str) -> str:
    """A path without ``baseline://``, or the ``safe://`` that the hook left at a runner that is run again."""
    for scheme in (SCHEME, AS_IT_IS):
        path = path.removeprefix(scheme)
    return path


def local_path(path: str) -> str:
    """A file on this machine for a ``load_from``: a path as it is, an http(s) address downloaded once a machine.

    Raises:
        ConfigError: another scheme, which only MMEngine's own readers know.
    """
    from mmengine.dist import barrier, get_local_rank

    path = os.path.expanduser(without_scheme(path))
    if path.startswith(('http://', 'https://')):
        target = os.path.join(torch.hub.get_dir(), 'checkpoints', os.path.basename(path))
        if get_local_rank() == 0 and not os.path.isfile(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            torch.hub.download_url_to_file(path, target)
        barrier()
        return target
    if '://' in path:
        raise ConfigError(
            f'load_from={path!r}: a baseline is read from a local file or an http(s) address; download it first'
        )
    return path


def read_as_it_is(path: str, map_location: Any = 'cpu') -> Dict[str, Any]:
    """Any checkpoint file as MMEngine has them, its names untouched: ``state_dict`` and what stands beside it."""
    return read_checkpoint(path, map_location)


def load_from_safe(filename: str, map_location: Any = None) -> Dict[str, Any]:
    """MMEngine checkpoint scheme ``safe://PATH``: read without running anything that it holds, and not imported."""
    return without_programs(read_as_it_is(local_path(filename), map_location or 'cpu'))


def without_programs(checkpoint: Dict[str, Any]) -> Dict[str, Any]:
    """A checkpoint without ``meta['config']``, a program's text that MMEngine runs when a training is resumed."""
    meta = checkpoint.get('meta')
    if isinstance(meta, Mapping) and 'config' in meta:
        return {**checkpoint, 'meta': {key: value for key, value in meta.items() if key != 'config'}}
    return checkpoint


@contextmanager
def safe_loaders() -> Iterator[None]:
    """Have MMEngine read every file and http(s) address as ``safe://`` does, for as long as the context lasts.

    It serves what no hook is asked about: a ``load_from`` of a config without ``DeformUpgradeHook``, and ``init_cfg``.
    """
    from mmengine.runner import CheckpointLoader

    before = CheckpointLoader._schemes.copy()
    try:
        CheckpointLoader.register_scheme(('', 'http://', 'https://'), load_from_safe, force=True)
        yield
    finally:
        CheckpointLoader._schemes = before


def imported_checkpoint(path: str, map_location: Any = 'cpu') -> tuple[Dict[str, Any], Imported]:
    """A checkpoint under mmdet's or mmseg's names, for loaders that know no network; and the import's report.

    One in the libraries' own names passes untouched. What an imported file had for resuming (optimizer, epoch) is
    left out, since it is of another library or version.
    """
    checkpoint = read_as_it_is(path, map_location)
    try:
        imported = import_checkpoint(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error
    if imported.format == OWN_NAMES:
        return checkpoint, imported
    kept = {key: value for key, value in checkpoint.items() if key == 'ema_state_dict'}
    return {**kept, 'meta': meta_of(imported, checkpoint.get('meta')), 'state_dict': imported.state_dict}, imported


def meta_of(imported: Imported, meta: Any) -> Dict[str, Any]:
    """``meta`` of an imported baseline: the classes, where they are known, and what was done."""
    dataset = dataset_meta(meta)
    if imported.classes:
        dataset.setdefault('classes', imported.classes)
    return {**({'dataset_meta': dataset} if dataset else {}), 'imported': imported.summary()}
