# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A data set as another camera would have taken it: pictures, masks and boxes through a named map.

    python -m benchmarks.datasets.warp_dataset voc data/VOCdevkit/VOC2007 data/fisheye/VOC2007 --map fisheye
    python -m benchmarks.datasets.warp_dataset coco data/coco data/wide --map zoom:magnification=0.7
    python -m benchmarks.datasets.warp_dataset masks data/camvid data/camvid_tilted --map perspective

Labels are taken by nearest neighbour; what shows no scene is 255. Boxes come from instance masks where the set has
them, and are then exact; otherwise from the warped outline of the box, which is looser. An object of which less than a
quarter is seen becomes difficult (VOC) or crowd (COCO); one of which nothing is seen goes. ``warp.json`` in OUT records
the map, its parameters and the counts, ``contact_sheet.jpg`` shows some pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.datasets.geometry import IGNORED, MAPS, parameters
from benchmarks.datasets.output import refuse_occupied, staged_folder
from benchmarks.datasets.warped import LAYOUTS, Job
from mmdeform_upgrade.errors import DataError
from mmdeform_upgrade.mm import command_line


def parse_map(text: str) -> tuple[str, dict[str, Any]]:
    """``'zoom:magnification=0.7'``: a map and its parameters; pairs are written ``small=0.8..1.3``.

    Raises:
        DataError: there is no such map or parameter, or a value is not a number.
    """
    name, _, rest = text.partition(':')
    if name not in MAPS:
        raise DataError(f'--map {text}: there is no map {name!r}; there are {", ".join(MAPS)}')
    known, values = parameters(name), {}
    for entry in filter(None, rest.split(',')):
        key, _, value = entry.partition('=')
        if key not in known:
            raise DataError(f'--map {text}: {name} has no parameter {key!r}; it has {", ".join(known) or "none"}')
        try:
            numbers = tuple(float(part) for part in value.split('..'))
        except ValueError:
            raise DataError(f'--map {text}: {key}={value!r} is not a number') from None
        if len(numbers) != (2 if isinstance(known[key], tuple) else 1) or min(numbers) <= 0:
            expected = 'LOW..HIGH' if isinstance(known[key], tuple) else 'one number'
            raise DataError(f'--map {text}: {key}={value!r}, expected {expected} above zero')
        values[key] = numbers if len(numbers) == 2 else numbers[0]
    return name, {**known, **values}


def warp_dataset(layout: str, source: Path, out: Path, job: Job) -> dict[str, Any]:
    """Write the warped set; ``out`` appears whole or not at all. Returns what ``warp.json`` holds."""
    refuse_occupied(out)
    with staged_folder(out) as folder:
        LAYOUTS[layout](source, folder, job)
        record = {
            'source': source.name,
            'map': job.name,
            'parameters': job.values,
            'seed': job.seed,
            'ignored': IGNORED,
        }
        record['counts'] = dict(sorted(job.counts.items()))
        (folder / 'warp.json').write_text(json.dumps(record, indent=1), encoding='utf8')
        cv2.imwrite(str(folder / 'contact_sheet.jpg'), _sheet(job.shown))
    return record


def _sheet(pictures: list[np.ndarray], side: int = 220, columns: int = 4) -> np.ndarray:
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * side, columns * side, 3), 40, np.uint8)
    for number, picture in enumerate(pictures):
        factor = (side - 6) / max(picture.shape[:2])
        small = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        top, left = number // columns * side + 3, number % columns * side + 3
        sheet[top : top + small.shape[0], left : left + small.shape[1]] = small
    return sheet


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('layout', choices=LAYOUTS)
    parser.add_argument('source', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--map', required=True, help=f'{", ".join(MAPS)}; with parameters: zoom:magnification=0.7')
    parser.add_argument('--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'), help="default: each picture's own")
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    job = Job(*parse_map(args.map), args.seed, tuple(args.size) if args.size else None)
    record = warp_dataset(args.layout, args.source, args.out, job)
    print(', '.join(f'{count} {what}' for what, count in record['counts'].items()) + f'; written to {args.out}')


if __name__ == '__main__':
    command_line.run(main)
