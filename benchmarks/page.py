# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""One self-contained HTML page of results: tables, charts, pictures, commands; light and dark, wide and narrow."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

Points = Sequence[Sequence[float]]
"""(x, y) or (x, y, lowest, highest) of each point of a line."""

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 520, 310, 54, 22, 10, 46

_STYLE = """
:root { color-scheme: light dark; --back: #fcfcfa; --ink: #1c1e21; --soft: #62676e; --line: #dcdcd6; --card: #fff;
  --c0: #6b7280; --c1: #d55e00; --c2: #00805c; --c3: #0072b2; --c4: #a8518a; --c5: #b07a00; --c6: #1c1e21; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181b; --ink: #e8e8e4; --soft: #a0a5ac; --line: #34383d; --card: #1e2125;
    --c0: #9ca3af; --c1: #ff8c42; --c2: #3ecf9f; --c3: #5db8f5; --c4: #e39cc9; --c5: #f0c050; --c6: #e8e8e4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; }
.lead { font-size: 1.1rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .45rem .8rem .45rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; font-size: .85rem; }
.number { text-align: right; padding-right: 1.6rem; }
td.number { white-space: nowrap; }
tr.strong td { font-weight: 700; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; border-radius: 6px; display: block; background: #fff; }
svg { width: 100%; max-width: 46rem; height: auto; display: block; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; }
.key i { display: inline-block; width: .9rem; height: .9rem; border-radius: 3px; margin-right: .4rem; vertical-align: -.1rem; }
.grid { display: grid; gap: 6px; }
.grid img { width: 100%; display: block; border-radius: 4px; }
.grid div { font-size: .85rem; color: var(--soft); align-self: end; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem; overflow-x: auto; }
@media (max-width: 40rem) { main { padding-top: 1rem; } h1 { font-size: 1.5rem; } table { font-size: .9rem; }
  th, td { padding-right: .5rem; } .number { padding-right: .7rem; } svg text { font-size: 18px; } pre { font-size: .75rem; } }
"""


class Page:
    """Blocks of a page in the order in which they are added.

    Args:
        title: of the page.
        lead: one or two sentences below it.
    """

    def __init__(self, title: str, lead: str = ''):
        self._title = html.escape(title)
        self._blocks = [f'<h1>{self._title}</h1>']
        if lead:
            self._blocks.append(f'<p class="lead">{html.escape(lead)}</p>')

    def heading(self, text: str) -> None:
        self._blocks.append(f'<h2>{html.escape(text)}</h2>')

    def text(self, text: str, soft: bool = False) -> None:
        self._blocks.append(f'<p{" class=soft" * soft}>{html.escape(text)}</p>')

    def command(self, text: str) -> None:
        self._blocks.append(f'<pre>{html.escape(text)}</pre>')

    def table(self, rows: Sequence[Sequence[str]], strong: Sequence[int] = ()) -> None:
        """Rows of text, the first one the heading; ``strong`` are the numbers of rows that stand out."""
        right = [all(_is_number(row[i]) for row in rows[1:]) for i in range(len(rows[0]))]
        lines = []
        for number, row in enumerate(rows):
            tag = 'td' if number else 'th'
            cells = (
                f'<{tag}{" class=number" * is_right}>{html.escape(cell)}</{tag}>'
                for cell, is_right in zip(row, right, strict=True)
            )
            lines.append(f'<tr{" class=strong" * (number in strong)}>{"".join(cells)}</tr>')
        self._blocks.append(f'<div class=wide><table>{"".join(lines)}</table></div>')

    def markdown(self, text: str) -> None:
        """Tables and paragraphs of Markdown; rows with bold text stand out."""
        for block in filter(None, map(str.strip, text.split('\n\n'))):
            lines = [line for line in block.splitlines() if not line.startswith('|---')]
            if block.startswith('|'):
                rows = [[cell.strip().strip('*') for cell in line.strip('|').split('|')] for line in lines]
                self.table(rows, strong=[i for i, line in enumerate(lines) if '**' in line])
            else:
                self.text(block, soft=True)

    def chart(
        self, lines: Mapping[str, Points], xlabel: str, ylabel: str, log: bool = False, bottom: float | None = None
    ) -> None:
        """Lines over x, each in a band where its points have one; a line of one point becomes a level."""
        key = [(name, f'var(--c{i % 7})') for i, name in enumerate(lines)]
        self._blocks.append(f'<figure>{_svg(lines, xlabel, ylabel, log, bottom)}{_key(key)}</figure>')

    def picture(self, picture: np.ndarray | Path, caption: str = '') -> None:
        """A file, or (H, W, 3) uint8 BGR."""
        note = f'<figcaption>{html.escape(caption)}</figcaption>' if caption else ''
        self._blocks.append(f'<figure>{_img(picture, caption)}{note}</figure>')

    def grid(self, heads: Sequence[str], rows: Sequence[Sequence[np.ndarray]], key: Mapping[str, str] = {}) -> None:
        """Pictures (H, W, 3) uint8 BGR in columns; ``key`` maps names to CSS colours."""
        cells = [f'<div>{html.escape(head)}</div>' for head in heads]
        cells += [_img(picture, head) for row in rows for head, picture in zip(heads, row, strict=True)]
        columns = f'grid-template-columns: repeat({len(heads)}, 1fr); min-width: {5 * len(heads)}rem'
        grid = f'<div class=wide><div class=grid style="{columns}">{"".join(cells)}</div></div>'
        self._blocks.append(f'<figure>{grid}{_key(list(key.items()))}</figure>')

    def write(self, path: Path) -> None:
        head = (
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{self._title}</title><style>{_STYLE}</style>'
        )
        body = '\n'.join(self._blocks)
        page = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'
        path.write_text(page, encoding='utf8')


def _is_number(text: str) -> bool:
    return not text or text.lstrip('+-').replace('.', '', 1).replace(' ', '').isdigit()


def _img(picture: np.ndarray | Path, alt: str) -> str:
    if isinstance(picture, Path):
        kind, data = picture.suffix.lstrip('.'), picture.read_bytes()
    else:
        kind, data = 'jpeg', cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _key(entries: Sequence[tuple[str, str]]) -> str:
    items = (f'<span><i style="background: {colour}"></i>{html.escape(name)}</span>' for name, colour in entries)
    return f'<div class=key>{"".join(items)}</div>' if entries else ''


def _svg(lines: Mapping[str, Points], xlabel: str, ylabel: str, log: bool, bottom: float | None) -> str:
    every = [point for points in lines.values() for point in points]
    xs = [point[0] for points in lines.values() if len(points) > 1 for point in points] or [p[0] for p in every]
    ys = [value for point in every for value in point[1:]]
    low, high = min(ys) if bottom is None else bottom, max(ys)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    along = (lambda x: math.log(x)) if log else float
    first, last = along(min(xs)), along(max(xs))

    def place(x: float, y: float) -> tuple[float, float]:
        right = (along(x) - first) / ((last - first) or 1)
        up = (y - low) / ((high - low) or 1)
        return (
            _LEFT + right * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = []
    for tick in ticks:
        _, y = place(min(xs), tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="var(--line)"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in sorted(set(xs)) if log else _ticks(min(xs), max(xs)):
        if min(xs) <= tick <= max(xs):
            x, y = place(tick, low)
            parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{tick:g}</text>')
    parts += [_line(points, f'var(--c{i % 7})', place) for i, points in enumerate(lines.values())]
    middle = (_LEFT + _WIDTH) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{html.escape(xlabel)}</text>')
    name = html.escape(ylabel)
    parts.append(
        f'<text x="12" y="{_HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 12 {_HEIGHT / 2})">{name}</text>'
    )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'


def _line(points: Points, colour: str, place: object) -> str:
    if len(points) == 1:
        y = place(points[0][0], points[0][1])[1]  # type: ignore[operator]
        return f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="{colour}" stroke-width="1.5" stroke-dasharray="5 4"/>'
    placed = [place(p[0], p[1]) for p in points]  # type: ignore[operator]
    band = ''
    if len(points[0]) > 2:
        edge = [place(p[0], p[2]) for p in points] + [place(p[0], p[3]) for p in reversed(points)]  # type: ignore[operator]
        band = f'<polygon points="{_joined(edge)}" fill="{colour}" opacity=".18"/>'
    dots = ''.join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in placed)
    return f'{band}<polyline points="{_joined(placed)}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'


def _joined(points: Sequence[tuple[float, float]]) -> str:
    return ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)


def _ticks(low: float, high: float) -> list[float]:
    """Some round numbers that cover an interval."""
    raw = max(high - low, 1e-9) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    return [round(i * step, 10) for i in range(math.floor(low / step), math.ceil(high / step) + 1)]
