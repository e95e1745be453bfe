# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Composes whole data sets: splits, progress, counts and provenance."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmdeform_upgrade.errors import DataError

from .output import refuse_occupied, staged_folder
from .scene import Scene, SceneOptions, compose_scene
from .sources import Source
from .writers import VOC_DIR, DatasetWriter

META = 'meta.json'
_FORMAT = 1  # raise when the same plan would give other pictures


def _check_options(options: SceneOptions, images: Mapping[str, int], seed: int) -> None:
    problems = []
    if options.size < 32:
        problems.append(f'size is {options.size}, at least 32 pixels are needed')
    if min(images.values()) < 0 or sum(images.values()) == 0:
        problems.append(f'picture counts are {dict(images)}, none negative and one positive needed')
    if seed < 0:
        problems.append(f'seed is {seed}, it cannot be negative')
    for name, low, high in (('objects', 0, 50), ('distractors', 0, 50), ('jpeg_quality', 1, 100)):
        first, last = getattr(options, name)
        if not low <= first <= last <= high:
            problems.append(f'{name} is {(first, last)}, expected {low} <= least <= most <= {high}')
    first, last = options.object_size
    if not 0 < first <= last <= 1:
        problems.append(f'object_size is {(first, last)}, expected 0 < least <= most <= 1')
    if not 0 < options.min_visible <= 1:
        problems.append(f'min_visible is {options.min_visible}, expected above 0 and at most 1')
    if not 0 <= options.max_angle <= 180:
        problems.append(f'max_angle is {options.max_angle}, expected 0 to 180 degrees')
    if not 0 <= options.warp_strength <= 1:
        problems.append(f'warp_strength is {options.warp_strength}, expected 0 to 1')
    if not 0 <= options.border < 32:
        problems.append(f'border is {options.border}, expected 0 to 31 pixels')
    if problems:
        raise DataError('Cannot compose: ' + '; '.join(problems) + '.')


def _already_composed(out: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the meta data of ``out`` if it is complete and of this very plan."""
    try:
        meta = json.loads((out / META).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(meta, dict) or meta.get('plan') != plan:
        return None
    pictures = len(list((out / VOC_DIR / 'JPEGImages').glob('*.jpg')))
    return meta if pictures == sum(plan['options']['images'].values()) else None


def _count(counts: dict[str, Any], scene: Scene, classes: tuple[str, ...]) -> None:
    counts['images'] += 1
    for instance in scene.instances:
        counts['instances'] += 1
        counts['difficult'] += int(instance.difficult)
        counts['per_class'][classes[instance.label]] += 1


def compose(
    out: str | Path,
    sources: Mapping[str, Source],
    images: Mapping[str, int],
    options: SceneOptions,
    seed: int,
    provenance: Mapping[str, Any],
    progress: bool = False,
) -> dict[str, Any]:
    """Composes a data set in VOC layout with COCO files beside it.

    Args:
        out: Folder to write (``VOC2007/``, ``annotations/``, ``meta.json``).
        sources: Material by split; what they hold must be disjoint.
        images: Number of pictures by split, in the order they are numbered.
        options: How pictures are composed.
        seed: The same seed, options and material give the same bytes.
        provenance: What ``sources`` were made of, for ``meta.json``.
        progress: Whether to show a progress bar.

    Returns:
        The content of ``meta.json``. A folder that already holds this very set stays as it is.

    Raises:
        DataError: An option is out of range, or ``out`` exists with other content.
    """
    out = Path(out)
    _check_options(options, images, seed)
    classes = tuple(next(iter(sources.values())).classes)
    recipe = {**asdict(options), 'images': dict(images), 'format': _FORMAT}
    plan = {'classes': classes, 'seed': seed, 'options': recipe, 'sources': dict(provenance)}
    plan = json.loads(json.dumps(plan))  # tuples become lists, as they are when read back
    found = _already_composed(out, plan)
    if found is not None:
        return found
    refuse_occupied(out)
    with staged_folder(out) as folder:
        writer = DatasetWriter(folder, classes, list(images), options.border)
        counts: dict[str, Any] = {}
        hidden = None if progress else True  # None: hidden unless on a terminal
        for number, (split, total) in enumerate(images.items()):
            zeros = dict.fromkeys(classes, 0)
            counts[split] = {'images': 0, 'instances': 0, 'difficult': 0, 'per_class': zeros}
            for i in tqdm(range(total), desc=split, unit='picture', disable=hidden):
                scene = compose_scene(sources[split], options, [seed, number, i])
                writer.add(split, scene)
                _count(counts[split], scene, classes)
        writer.finish()
        meta = {'plan': plan, 'counts': counts}
        (folder / META).write_text(json.dumps(meta, indent=1) + '\n')
    return meta
