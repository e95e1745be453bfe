# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Flags that the tools of experiments share."""

from __future__ import annotations

import argparse
from pathlib import Path


def experiment_flags() -> argparse.ArgumentParser:
    """A parent parser: config, metric, work directory, seeds, repeats, options, launcher, output."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('config', help="the baseline's config")
    parser.add_argument('--metric', required=True, help='score in the logs, such as pascal_voc/mAP or mIoU')
    parser.add_argument('--work-dir', required=True, help='folder of all runs')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--repeats', type=int, default=1, help='fine-tunes of each baseline, each with other batches')
    parser.add_argument('--part', default='backbone')
    parser.add_argument('--options', nargs='+', default=[], help='settings of every run, as key=value')
    parser.add_argument('--train-command', help='launcher of a cluster, with {config} and {work_dir}')
    parser.add_argument('--summary-only', action='store_true', help='run nothing, report what is there')
    parser.add_argument('--out', type=Path, help='also write OUT.json, OUT.md and, if something is drawn, OUT.png')
    return parser
