# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A folder that appears complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmdeform_upgrade.errors import DataError


def refuse_occupied(out: Path) -> None:
    """Raises ``DataError`` unless ``out`` is missing or an empty folder."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        raise DataError(
            f'{out} already exists with other content; nothing was changed. Remove it or choose another output folder.'
        )


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``out`` and renames it to ``out`` at the end.

    An error inside removes the temporary folder and leaves ``out`` as it was.

    Raises:
        DataError: ``out`` exists and is not an empty folder, or cannot be made.
    """
    refuse_occupied(out)
    staging = out.parent / f'.{out.name}.partial-{os.getpid()}'
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise DataError(f'Cannot write beside {out}: {error}') from error
    try:
        yield staging
        refuse_occupied(out)
        os.replace(staging, out)  # also replaces an empty folder
    finally:
        shutil.rmtree(staging, ignore_errors=True)
