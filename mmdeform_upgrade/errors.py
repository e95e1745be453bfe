# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The errors that the package raises on purpose, and what their messages share.

Each message says what was found, what was expected and what to do. Catch ``UpgradeError`` to catch them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class UpgradeError(Exception):
    """Base of every error that the package raises on purpose."""


class ShapeError(UpgradeError, ValueError):
    """A tensor's shape, dtype or device does not fit the operation."""


class TargetError(UpgradeError, ValueError):
    """The targets match no convolution, or one that cannot be upgraded."""


class CheckpointError(UpgradeError, ValueError):
    """A file is no readable checkpoint, or does not fit the network."""


class ConfigError(UpgradeError, ValueError):
    """A config or a schedule cannot be upgraded as asked."""


class DataError(UpgradeError, ValueError):
    """A data set cannot be composed or read."""


class ExportError(UpgradeError, ValueError):
    """A network cannot be exported as asked."""


class OperatorError(UpgradeError, NotImplementedError):
    """An operator of mmcv that only its compiled part has."""


class TrainingError(UpgradeError, RuntimeError):
    """A training run cannot continue: weights are not finite, or a file could not be written."""


@contextmanager
def naming(file: object) -> Iterator[None]:
    """Say of which file a ``CheckpointError`` within is."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f'{file}: {error}') from error


def listed(names: Sequence[object], shown: int = 20) -> str:
    """Names for a message: the first of them, and how many more there are."""
    more = len(names) - shown
    return ', '.join(map(str, names[:shown])) + (f' and {more} more' if more > 0 else '')
