# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The two kinds of sets: procedural shapes, and cut-outs from files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmdeform_upgrade.errors import DataError

from .compose import compose
from .files import check_all, digest_files, find_cutouts, find_photos, load_photo, read_rgba
from .scene import SceneOptions
from .sources import FileSource, ShapeSource
from .splits import SPLITS, split_files

SHAPE_OPTIONS = SceneOptions(size=96, objects=(1, 2), distractors=(0, 1), object_size=(0.35, 0.75), warp_strength=0.7)
"""Set so that a narrow SSD from scratch gets most, but not all, in minutes on a CPU."""


def compose_shapes(
    out: str | Path,
    *,
    train: int = 1500,
    val: int = 300,
    test: int = 300,
    size: int = 96,
    seed: int = 0,
    warp: bool = True,
    options: SceneOptions | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Composes textured procedural shapes (``SHAPE_CLASSES``); nothing is read or downloaded.

    Args:
        out: Folder to write.
        train: Number of training pictures.
        val: Number of validation pictures.
        test: Number of test pictures.
        size: Side of the pictures, in pixels.
        seed: The same seed gives the same bytes.
        warp: Whether shapes are rotated and warped.
        options: The remaining options, ``SHAPE_OPTIONS`` by default; its ``size`` and ``warp``
            are replaced.
        progress: Whether to show a progress bar.

    Returns:
        The content of ``meta.json``.

    Raises:
        DataError: An option is out of range, or ``out`` exists with other content.
    """
    options = replace(options or SHAPE_OPTIONS, size=size, warp=warp)
    source = ShapeSource(max(32, round(size * options.object_size[1] * 1.1)))
    images = dict(zip(SPLITS, (train, val, test), strict=True))
    provenance = {'kind': 'procedural shapes'}
    return compose(out, dict.fromkeys(SPLITS, source), images, options, seed, provenance, progress=progress)


def _split_material(
    cutouts: Path, backgrounds: Path, distractors: Path | None, split: Sequence[float], seed: int
) -> tuple[dict[str, dict[str, Any]], str]:
    """Returns files by split and kind, and a digest of all of them."""
    by_class = find_cutouts(cutouts)
    photos = find_photos(backgrounds, 'Backgrounds')
    others = find_photos(distractors, 'Distractors') if distractors else []
    every_cutout = [path for files in by_class.values() for path in files] + others
    check_all(every_cutout, read_rgba)
    check_all(photos, lambda path: load_photo(path, 64))
    digest = digest_files(every_cutout + photos)
    parts: dict[str, dict[str, Any]] = {name: {'cutouts': {}} for name in SPLITS}
    for label, (name, files) in enumerate(by_class.items()):
        found = split_files(files, split, [seed, 3, label], f'class "{name}"')
        for part, members in found.items():
            parts[part]['cutouts'][name] = members
    for number, (kind, files) in enumerate((('backgrounds', photos), ('distractors', others))):
        found = split_files(files, split, [seed, 4, number], kind) if files else {}
        for part in SPLITS:
            parts[part][kind] = found.get(part, [])
    return parts, digest


def _names(material: Any) -> Any:
    """Replaces paths by file names, so that meta data do not depend on where files lie."""
    if isinstance(material, dict):
        return {key: _names(value) for key, value in material.items()}
    return [path.name for path in material]


def compose_cutouts(
    out: str | Path,
    cutouts: str | Path,
    backgrounds: str | Path,
    *,
    distractors: str | Path | None = None,
    train: int = 1000,
    val: int = 250,
    test: int = 250,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    options: SceneOptions | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Composes cut-outs on background photos, all split before composing.

    Args:
        out: Folder to write.
        cutouts: Folder of class folders of PNGs with alpha.
        backgrounds: Folder of photos that show none of the classes.
        distractors: Folder of PNGs with alpha of other things, left unannotated. Without it,
            only shapes filled with background are.
        train: Number of training pictures.
        val: Number of validation pictures.
        test: Number of test pictures.
        split: Shares of the material for train, val and test, in every class alike.
        seed: Decides the split and the pictures; the same seed gives the same bytes.
        options: How pictures are composed; by default rotation stays within 30 degrees.
        progress: Whether to show a progress bar.

    Returns:
        The content of ``meta.json``.

    Raises:
        DataError: A folder is missing or empty, a file is no cut-out or is there twice, a class
            is too small to split, an option is out of range, or ``out`` exists with other content.
    """
    if len(split) != len(SPLITS) or min(split) <= 0:
        raise DataError(f'split is {tuple(split)}, expected three positive shares.')
    if seed < 0:
        raise DataError(f'seed is {seed}, it cannot be negative.')
    options = options or SceneOptions()
    parts, digest = _split_material(
        Path(cutouts), Path(backgrounds), Path(distractors) if distractors else None, split, seed
    )
    sources = {
        name: FileSource(part['cutouts'], part['distractors'], part['backgrounds'], options.size)
        for name, part in parts.items()
    }
    images = dict(zip(SPLITS, (train, val, test), strict=True))
    provenance = {'kind': 'cut-outs', 'sha256': digest, 'splits': _names(parts)}
    return compose(out, sources, images, options, seed, provenance, progress=progress)
