# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Selects photographic cut-outs and clean backgrounds from installed Debian packages.

Packages: ``tuxpaint-stamps-default`` (GPL-2) for cut-outs; ``mate-backgrounds``,
``plasma-workspace-wallpapers`` and ``lomiri-wallpapers-16.04`` for backgrounds. The tables below
come from looking at every selected picture.
"""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mmdeform_upgrade.errors import DataError

from .files import read_rgba
from .output import refuse_occupied, staged_folder

STAMPS = Path('/usr/share/tuxpaint/stamps')
BACKGROUNDS = Path('/usr/share')

_CLASSES: dict[str, tuple[str, ...]] = {
    'bird': ('animals/birds',),
    'fish': ('animals/fish',),
    'flower': ('plants/flowers',),
    'fruit': ('food/fruit',),
    'mammal': ('animals/mammals', 'animals/marsupials'),
    'tool': ('household/tools',),
    'vegetable': ('food/vegetables',),
}

# Things of no class and not like one: no nuts (fruit), trees (plants) or kitchen tools.
_DISTRACTORS = (
    'animals/amphibians',
    'animals/insects',
    'hobbies',
    'household/dishes',
    'military/vehicles',
    'sports',
    'symbols/money',
    'vehicles',
)

_UNWANTED: dict[str, str] = {
    'animals/fish/lobster': 'not a fish',
    'animals/fish/shrimp': 'not a fish',
    'animals/mammals/bears/toys/edward_bear': 'a toy',
    'animals/mammals/hedgehog': 'drawn',
    'household/dishes/utensils/nutcracker': 'looks like a tool',
    'household/dishes/utensils/pepper_grinder': 'looks like a tool',
    'household/tools/cementmixer': 'a machine',
    'sports/rugby_goal_posts': 'hardly visible',
    'vehicles/emergency/sedan_police': 'only a part of a car',
    'vehicles/emergency/sedan_police_mirror': 'only a part of a car',
}

# Otherwise a name's first word makes the group: "gnu-stand" and "gnu-baby" share a split.
_GROUPS = {'garlics': 'garlic', 'Strawberry2': 'strawberry'}

_MATE = 'backgrounds/mate/nature/{}.jpg'
_PLASMA = 'wallpapers/{}/contents/images/2560x1600.jpg'
_LOMIRI = 'backgrounds/{}.jpg'

_PHOTOS: dict[str, tuple[str, ...]] = {
    _MATE: ('Aqua', 'Blinds', 'Dune', 'GreenMeadow', 'RainDrops', 'Storm', 'Wood'),
    _PLASMA: (
        'BytheWater',
        'ColdRipple',
        'DarkestHour',
        'FallenLeaf',
        'Grey',
        'Kite',
        'OneStandsOut',
        'Path',
        'summer_1am',
    ),
    _LOMIRI: (  # without Picture_1A: brushes, which are tools
        'Bridge_by_Sander_Klootwijk',
        'Wine_by_Jakkub_Mede',
        'aitzgorri_by_Aitzol_Berasategi',
        'greentock_by_Peter_Nerlich',
        'life_by_Aitzol_Berasategi',
        'picosdeeuropa_by_Aitzol_Berasategi',
        'sunset_by_Aitzol_Berasategi',
    ),
}

_MIN_COLORS = 300
_MIN_PALETTE_COLORS = 200  # a palette has 256 at most: photos that were reduced to one


def _reason_to_drop(path: Path, name: str) -> str | None:
    """Says why a stamp is no photographic cut-out, or None if it is one."""
    if name in _UNWANTED:
        return _UNWANTED[name]
    if 'cartoon' in name:
        return 'cartoon'
    if name.endswith(('_mirror', '_flip')):
        return 'mirrored copy'
    try:
        rgba = read_rgba(path)
    except DataError as error:
        return str(error).removeprefix(f'{path} ')
    alpha = rgba[..., 3]
    colors = len(np.unique(rgba[alpha >= 128][:, :3], axis=0))
    if colors < (_MIN_PALETTE_COLORS if _is_palette(path) else _MIN_COLORS):
        return f'{colors} colours: a drawing or a silhouette'
    if (alpha < 128).mean() < 0.05:
        return 'opaque square'
    if (alpha >= 128).mean() < 0.05 or (alpha >= 128).sum() < 0.5 * (alpha > 0).sum():
        return 'nearly transparent'
    if max(alpha.shape) < 40:
        return 'tiny'
    return None


def _is_palette(path: Path) -> bool:
    with path.open('rb') as file:
        return file.read(26)[25:26] == b'\x03'  # colour type in the PNG header


def _selected(stamps: Path, folders: Iterable[str], dropped: dict[str, str]) -> list[Path]:
    """Returns the usable stamps of some folders, and notes why others are not."""
    kept = []
    for path in sorted(p for folder in folders for p in (stamps / folder).rglob('*.png')):
        name = path.relative_to(stamps).with_suffix('').as_posix()
        reason = _reason_to_drop(path, name)
        if reason is None:
            kept.append(path)
        else:
            dropped[name] = reason
    return kept


def _grouped_name(path: Path, stamps: Path) -> str:
    first = re.split('[-_]', path.stem)[0].lower()
    return f'{_GROUPS.get(path.stem, first)}__{"-".join(path.relative_to(stamps).parts)}'


def _copy(files: Iterable[Path], folder: Path, names: Iterable[str]) -> int:
    folder.mkdir(parents=True)
    count = 0
    for path, name in zip(files, names, strict=True):
        shutil.copyfile(path, folder / name)
        count += 1
    return count


def _background_files(root: Path) -> dict[str, Path]:
    files = {n: root / pattern.format(n) for pattern, names in _PHOTOS.items() for n in names}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise DataError(
            f'{len(missing)} background photos are missing, first {missing[0]}. Install '
            'mate-backgrounds, plasma-workspace-wallpapers and lomiri-wallpapers-16.04.'
        )
    return files


def collect_debian_cutouts(
    out: str | Path, stamps: str | Path = STAMPS, share: str | Path = BACKGROUNDS
) -> dict[str, Any]:
    """Copies the usable pictures of the installed packages, sorted by class.

    The pictures keep their licences (the stamps: GPL-2); commit neither them nor what is
    composed of them.

    Args:
        out: Folder to write: ``cutouts/class_name/``, ``distractors/``, ``backgrounds/`` and
            ``sources.json``.
        stamps: Where ``tuxpaint-stamps-default`` puts its stamps.
        share: Where the packages of backgrounds put theirs.

    Returns:
        Counts by class, and why stamps were dropped.

    Raises:
        DataError: A package is not installed, or ``out`` exists with other content.
    """
    out, stamps = Path(out), Path(stamps)
    refuse_occupied(out)
    if not stamps.is_dir():
        raise DataError(f'{stamps} is missing. Install tuxpaint-stamps-default.')
    photos = _background_files(Path(share))
    dropped: dict[str, str] = {}
    counts: dict[str, int] = {}
    with staged_folder(out) as folder:
        for name, folders in _CLASSES.items():
            files = _selected(stamps, folders, dropped)
            names = [_grouped_name(path, stamps) for path in files]
            counts[name] = _copy(files, folder / 'cutouts' / name, names)
        files = _selected(stamps, _DISTRACTORS, dropped)
        names = [_grouped_name(path, stamps) for path in files]
        counts['distractors'] = _copy(files, folder / 'distractors', names)
        names = [f'{name}.jpg' for name in photos]
        counts['backgrounds'] = _copy(photos.values(), folder / 'backgrounds', names)
        result = {'counts': counts, 'dropped': dropped}
        (folder / 'sources.json').write_text(json.dumps(result, indent=1) + '\n')
    return result
