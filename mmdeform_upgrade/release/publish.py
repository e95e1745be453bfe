# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A checkpoint of a run to the files of a model zoo."""

from __future__ import annotations

import datetime
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import clean_state_dict, file_sha256, refuse_delta
from ..config import read_config
from ..config.text import whole_text
from ..errors import CheckpointError, ConfigError, listed
from ..files import write_safetensors
from ..readers import read_checkpoint
from .contents import meta_text, plain_meta, refuse_existing, write_checkpoint
from .rewrite import stock_config

_NO_CONFIG = 'the config in a checkpoint is a program, which is not run; give --config'


def published_checkpoint(
    checkpoint: Mapping[str, Any], *, ema: bool = False, config_text: str | None = None
) -> dict[str, Any]:
    """What is published of a checkpoint: weights and ``meta``, without optimizer, schedulers, messages and EMA copies.

    Args:
        checkpoint: as read; it is not changed.
        ema: publish the averaged weights. MMEngine's ``EMAHook`` saves these under ``state_dict``, where every loader
            looks, and those that were trained under ``ema_state_dict``; other trainers do it the other way round.
        config_text: takes the place of the config in ``meta``.

    Raises:
        CheckpointError: there are no averaged weights, what is there is no checkpoint, or it holds NaN.
    """
    meta = checkpoint.get('meta') or {}
    refuse_delta(checkpoint)
    state_dict = clean_state_dict(checkpoint['state_dict'])
    if ema:
        if not checkpoint.get('ema_state_dict'):
            raise CheckpointError(
                '--ema: the checkpoint has no ema_state_dict; publish it without --ema, or train '
                "with custom_hooks=[dict(type='EMAHook')]"
            )
        if 'mmengine_version' not in meta:
            averaged = clean_state_dict(checkpoint['ema_state_dict'])
            if odd := sorted(averaged.keys() ^ state_dict.keys()):
                raise CheckpointError(f'--ema: state_dict and ema_state_dict differ in their names: {listed(odd)}')
            state_dict = {key: averaged[key] for key in state_dict}
    if broken := [key for key, value in state_dict.items() if value.is_floating_point() and value.isnan().any()]:
        raise CheckpointError(
            f'{len(broken)} of its tensors hold NaN ({listed(broken, 5)}): the training that saved it diverged; publish a '
            'checkpoint from before that'
        )
    kept = plain_meta(meta)
    if config_text is not None:
        kept['cfg'] = config_text
    return {'meta': kept, 'state_dict': state_dict}


def publish(
    source: str,
    out_dir: str,
    *,
    config: str | None = None,
    ema: bool = False,
    force: bool = False,
    date: str | None = None,
) -> list[str]:
    """Write ``{config}_{date}-{sha256[:8]}.pth``, a safetensors file, and a config for stock installations if possible.

    Args:
        source: checkpoint of a run.
        out_dir: folder for the release.
        config: the config it was trained with. Without it there is no config for stock installations: the text in the
            checkpoint is a program, which is published and never run.
        ema: see :func:`published_checkpoint`.
        force: overwrite files of the same names.
        date: YYYYMMDD, by default today.

    Returns:
        The paths written; a last line that begins with ``no stock config`` where there can be none.

    Raises:
        CheckpointError: the source cannot be read or published, or is not of the config's network.
        ConfigError: files exist, or the date is none.
    """
    out_dir = os.path.expanduser(out_dir)
    date = date or datetime.date.today().strftime('%Y%m%d')
    if not re.fullmatch(r'\d{8}', date):
        raise ConfigError(f'--date {date!r}: expected YYYYMMDD')
    cfg = read_config(config) if config else None
    raw = {'meta': {}, **read_checkpoint(source)}
    release = published_checkpoint(raw, ema=ema, config_text=cfg.pretty_text if cfg else None)
    release['meta']['published'] = {
        'source': os.path.basename(source),
        'source_sha256': file_sha256(source),
        'weights': 'averaged (EMA)' if ema else 'state_dict',
    }
    stock, reason = stock_config(cfg, release['state_dict']) if cfg else (None, _NO_CONFIG)
    os.makedirs(out_dir, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir, prefix='.publish') as folder:
        temporary = os.path.join(folder, 'release.pth')
        write_checkpoint(temporary, release['state_dict'], release['meta'])
        run = re.sub(r'_\d{8}_\d{6}$', '', str((raw['meta'] or {}).get('experiment_name') or ''))
        name = Path(config).stem if config else re.sub(r'[^\w.-]', '_', run) or Path(source).stem
        stem = os.path.join(out_dir, f'{name}_{date}-{file_sha256(temporary)[:8]}')
        written = [f'{stem}.pth', f'{stem}.safetensors'] + ([f'{stem}-stock.py'] if stock else [])
        refuse_existing(written, force)
        write_safetensors(written[1], release['state_dict'], meta_text(release['meta']))
        if stock:
            stock.pop('work_dir', None)
            Path(written[2]).write_text(whole_text(stock), encoding='utf8')
        os.replace(temporary, written[0])
    return written + ([] if stock else [f'no stock config: {reason}'])
