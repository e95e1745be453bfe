# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The demo's table, its curves and pictures, and the page that shows them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from torch import nn

from mmdeform_upgrade.config import read_config
from mmdeform_upgrade.mm.preflight import load_network

from .. import plots
from ..page import Page
from . import look
from .job import Demo, Results
from .tasks import TASKS

NAMES = {
    'home': 'baseline, its own camera',
    'baseline': 'baseline, the new camera',
    'untouched': 'upgrade, before its first step',
    'control': 'control: trained on, no upgrade',
    'offsets': 'adapter: offsets alone trained',
    'off': 'adapter taken off again',
    'upgraded': 'upgrade, everything trained',
}
TRAINED = ('control', 'offsets', 'upgraded')
SHOWN = 4


def rows(results: Results) -> list[tuple[str, str, str, str]]:
    """The table: network, steps, test score, difference to the control."""
    scores = {**results.scores, 'off': results.adapter['off']}
    lines = [('network', 'steps', f'test {TASKS[results.task].score}', 'over the control')]
    for name, title in NAMES.items():
        over = f'{scores[name] - scores["control"]:+.2f}' if name in ('offsets', 'upgraded') else ''
        lines.append((title, str(results.sizes.steps if name in TRAINED else 0), f'{scores[name]:.2f}', over))
    return lines


def signal_rows(results: Results) -> list[tuple[str, ...]]:
    """The signal before training, by layer, on the pictures of both cameras."""
    lines = [('layer', 'own camera: signal', 'z', 'verdict', 'new camera: signal', 'z', 'verdict')]
    home, camera = (results.signal[name]['layers'] for name in ('home', 'camera'))
    for pair in zip(home, camera, strict=True):
        cells = [(f'{layer["snr"]:.1f}', f'{layer["z"]:.1f}', layer['verdict']) for layer in pair]
        lines.append((pair[0]['layer'], *cells[0], *cells[1]))
    return lines


def table(results: Results) -> str:
    """The scores and the signal in Markdown."""
    return f'{plots.table(rows(results))}\n\n{plots.table(signal_rows(results))}'


def summary(results: Results) -> str:
    """What was found, whatever it is."""
    scores = results.scores
    lost = "Nothing is lost: before its first step, and with the adapter taken off again, the score is the baseline's."
    fault = 'The untouched upgrade scores something else than the baseline: this is a fault.'
    gain = scores['upgraded'] - scores['control']
    return (
        f'{lost if results.nothing_lost else fault}\n'
        f'The upgrade {"gains" if gain > 0 else "loses"} {abs(gain):.2f} points against training on without it; the '
        f'offsets alone, {results.adapter["bytes"] / 1e3:.0f} kB beside the baseline, are '
        f'{scores["offsets"] - scores["control"]:+.2f}.\n'
        f"Before training, {' of '.join(map(str, results.learning('camera')))} layers have a signal on the new camera's "
        f'pictures, {" of ".join(map(str, results.learning("home")))} on those that the baseline was trained on.\n'
        f'One seed, generated data; {results.minutes:.1f} minutes.'
    )


def write(demo: Demo, results: Results) -> None:
    """``index.html``, ``table.md``, ``curves.png``, ``pictures.png`` and ``offsets.png`` in the demo's folder."""
    out, task = demo.out, demo.task
    (out / 'table.md').write_text(table(results) + '\n', encoding='utf8')
    start = results.curves['upgraded'][0]  # before the first step all of them are the baseline
    curves = {NAMES[name]: [start, *(p for p in results.curves[name] if p[0] > start[0])] for name in TRAINED}
    plots.draw_curves(
        curves, out / 'curves.png', ylabel=f'validation {task.score}', title='generated shapes, fisheye', xlabel='steps'
    )
    with _quietly():
        heads, grid, palette, classes = _pictures(demo)
        taps, stretch, profiles = _offsets(demo)
    _save(_sheet(heads, grid), out / 'pictures.png')
    _save(np.hstack([taps, np.full((len(taps), 12, 3), 255, np.uint8), stretch]), out / 'offsets.png')

    page = Page(
        'A trained network, another camera',
        f'A {"detector" if task.boxes else "segmentor"} that was trained on ordinary pictures gets {results.sizes.train} labelled ones of a fisheye. '
        'It is upgraded to deformable convolutions, which loses nothing, and trained on for a few hundred steps. '
        'All data are generated.',
    )
    page.table(rows(results), strong=[list(NAMES).index('upgraded') + 1])
    for line in summary(results).splitlines():
        page.text(line)
    page.heading('While they train')
    page.chart(curves, 'steps', f'validation {task.score}')
    page.heading('What they see')
    page.text('Test pictures, those of the first 32 that show most of objects.', soft=True)
    key = {name: 'rgb({}, {}, {})'.format(*colour) for name, colour in zip(classes, palette, strict=True)}
    key.pop('background', None)
    page.grid(heads, grid, key)
    page.heading('Where the upgrade looks')
    page.text(
        'Taps of the last 3x3 convolution at nine places: white before training, orange after. Right: how much wider '
        'it looks in each place, bright is wider. The camera magnifies in the middle; the chart shows how far the '
        'offsets follow.'
    )
    page.grid(['taps, before and after', 'how much wider it looks'], [[taps, stretch]])
    page.chart(profiles, 'distance from the middle, 1 at the edge', 'factor')
    page.heading('Measured before training')
    page.text(
        "Signal-to-noise of the gradient of each layer's offsets at the baseline, on scenes that it was trained on and on "
        'the same scenes through the new camera; 1 is noise, and z is how sure it is that there is a signal.',
        soft=True,
    )
    page.table(signal_rows(results))
    page.heading('The upgrade')
    page.command(results.plan.strip())
    page.heading('Repeat it')
    page.command(task.command)
    page.text(f'{results.minutes:.1f} minutes on this machine; two threads. The numbers are in demo.json.', soft=True)
    page.write(out / 'index.html')


def _network(demo: Demo, config: str, checkpoint: Path) -> nn.Module:
    return load_network(str(demo.config(config)), str(checkpoint))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what frameworks print while they are imported and load."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _pictures(demo: Demo) -> tuple[list[str], list[list[np.ndarray]], list[list[int]], tuple[str, ...]]:
    """Headings, and rows of test pictures: the picture, the truth, and what each network says."""
    meta = read_config(str(demo.config('camera'))).metainfo
    networks = {'baseline': _network(demo, 'camera', demo.task.checkpoint)}
    networks |= {name: _network(demo, name, demo.checkpoint(name)) for name in TRAINED}
    grid = []
    shown = look.boxes_on if demo.task.boxes else look.labels_on
    for file in _files(demo)[:SHOWN]:
        drawn = shown(file, networks.values(), meta['palette'])
        grid.append([cv2.imread(str(file)), *drawn])
    heads = ['picture', 'truth', 'baseline', 'control', 'offsets alone', 'upgrade']
    return heads, grid, meta['palette'], meta['classes']


def _files(demo: Demo) -> list[Path]:
    """The first test pictures, those that show most of objects before the others."""
    files = sorted((demo.out / 'data' / 'test' / 'images').iterdir())[:32]
    shown = (lambda file: len(look.true_boxes(file))) if demo.task.boxes else look.labelled
    return sorted(files, key=lambda file: -shown(file))


def _offsets(demo: Demo) -> tuple[np.ndarray, np.ndarray, dict[str, list[tuple[float, float]]]]:
    network = _network(demo, 'upgraded', demo.checkpoint('upgraded'))
    records, size = look.offsets_on(network, _files(demo))
    taps = look.draw_taps(cv2.imread(str(_files(demo)[0])), records[-1])
    return taps, look.draw_stretch(records[-1], taps.shape[0]), look.profiles(records, demo.task.geometry, size)


def _save(picture: np.ndarray, path: Path, width: int = 900) -> None:
    """A small PNG of 256 colours."""
    small = cv2.resize(picture, None, fx=(f := min(1.0, width / picture.shape[1])), fy=f, interpolation=cv2.INTER_AREA)
    Image.fromarray(small[..., ::-1]).quantize(256).save(path, optimize=True)


def _sheet(heads: Sequence[str], grid: Sequence[Sequence[np.ndarray]], gap: int = 6) -> np.ndarray:
    """The pictures of a grid as one, white between them, headings above."""
    height, width = grid[0][0].shape[:2]
    top = 24
    sheet = np.full((top + len(grid) * (height + gap), len(heads) * (width + gap), 3), 255, np.uint8)
    for j, head in enumerate(heads):
        cv2.putText(
            sheet, head, (j * (width + gap) + 2, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (60, 60, 60), 1, cv2.LINE_AA
        )
        for i, row in enumerate(grid):
            y, x = top + i * (height + gap), j * (width + gap)
            sheet[y : y + height, x : x + width] = row[j]
    return sheet
