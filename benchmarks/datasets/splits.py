# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Splits files into train, val and test before anything is composed of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmdeform_upgrade.errors import DataError

SPLITS = ('train', 'val', 'test')

_GROUP_MARK = '__'


def group_of(path: Path) -> str:
    """Returns what precedes ``__`` in a file's name: pictures of one group share a split."""
    return path.stem.split(_GROUP_MARK)[0]


def split_files(
    files: Sequence[Path], fractions: Sequence[float], seed: Sequence[int], what: str
) -> dict[str, list[Path]]:
    """Splits files by group into disjoint, sorted lists.

    Val and test get the groups first that keep them closest to their share, at least one each;
    train gets the rest.

    Args:
        files: The files of one class, or the backgrounds.
        fractions: Shares of train, val and test; they need not sum to 1.
        seed: Entropy of the shuffle.
        what: Name for error messages.

    Returns:
        Files by split.

    Raises:
        DataError: There are fewer groups than splits.
    """
    groups: dict[str, list[Path]] = {}
    for path in sorted(files):
        groups.setdefault(group_of(path), []).append(path)
    if len(groups) < len(SPLITS):
        raise DataError(
            f'{what}: {len(files)} files in {len(groups)} groups are too few for three splits; '
            'at least 3 groups are needed (files whose names agree up to "__" are one group).'
        )
    names = sorted(groups)
    order = [names[i] for i in np.random.default_rng(list(seed)).permutation(len(names))]
    result: dict[str, list[Path]] = {}
    for position, split in ((1, 'val'), (2, 'test')):
        wanted = len(files) * fractions[position] / sum(fractions)
        result[split] = groups[order.pop()]
        # One group is left for each split that is still to be filled.
        while len(order) > len(SPLITS) - position:
            if abs(len(result[split]) + len(groups[order[-1]]) - wanted) >= abs(len(result[split]) - wanted):
                break
            result[split] = result[split] + groups[order.pop()]
    train = [path for name in order for path in groups[name]]
    return {'train': sorted(train), **{split: sorted(paths) for split, paths in result.items()}}
