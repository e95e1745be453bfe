# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What the demo's networks say about test pictures, and where the upgraded one looks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from mmdeform_upgrade.analysis.look import predict
from mmdeform_upgrade.analysis.offsets import OffsetRecorder, Record

from ..camera.picture import stretch
from ..camera.testbeds import Geometry

Palette = Sequence[Sequence[int]]  # RGB
BEFORE, AFTER = (255, 255, 255), (0, 94, 213)  # BGR


def overlay(picture: np.ndarray, labels: np.ndarray, palette: Palette) -> np.ndarray:
    """A picture (H, W, 3) BGR, its classes (H, W) in colour; grey where there is no label."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = np.array(palette, np.uint8)[:, ::-1]
    known = ((labels > 0) & (labels < len(palette)))[..., None]
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR) * 0.75
    return np.where(known, 0.25 * grey + 0.75 * colours[labels], grey).astype(np.uint8)


def labels_on(file: Path, models: Iterable[nn.Module], palette: Palette) -> list[np.ndarray]:
    """A picture with its true classes, and with those that each segmentor sees."""
    found = [predict(model, str(file)).pred_sem_seg.data.squeeze().cpu().numpy().astype(np.uint8) for model in models]
    return [overlay(cv2.imread(str(file)), labels, palette) for labels in (true_labels(file), *found)]


def true_labels(file: Path) -> np.ndarray:
    return cv2.imread(str(file.parents[1] / 'labels' / f'{file.stem}.png'), cv2.IMREAD_UNCHANGED)


def labelled(file: Path) -> int:
    """How many pixels of a picture show objects."""
    labels = true_labels(file)
    return int(((labels > 0) & (labels < 255)).sum())


def boxes_on(file: Path, models: Iterable[nn.Module], palette: Palette, least: float = 0.3) -> list[np.ndarray]:
    """A picture with its true boxes, and with those of a score of ``least`` that each detector finds."""
    drawn = [_boxed(file, true_boxes(file), palette)]
    for model in models:
        found = predict(model, str(file)).pred_instances.numpy()
        sure = found.scores >= least
        drawn.append(_boxed(file, list(zip(found.bboxes[sure], found.labels[sure], strict=True)), palette))
    return drawn


Boxes = Sequence[tuple[Sequence[float], int]]


def true_boxes(file: Path) -> Boxes:
    """((x0, y0, x1, y1), class) of the objects that count."""
    held = json.loads(file.parents[2].joinpath(f'{file.parents[1].name}.json').read_text(encoding='utf8'))
    index = next(image['id'] for image in held['images'] if image['file_name'] == file.name)
    rows = [a for a in held['annotations'] if a['image_id'] == index and not a['iscrowd']]
    return [((x, y, x + width, y + height), a['category_id'] - 1) for a in rows for x, y, width, height in [a['bbox']]]


def _boxed(file: Path, boxes: Boxes, palette: Palette) -> np.ndarray:
    picture = (cv2.imread(str(file)) * 0.75).astype(np.uint8)
    for box, label in boxes:
        x0, y0, x1, y1 = (round(float(value)) for value in box)
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), tuple(palette[int(label)][::-1]), 2)
    return picture


@torch.no_grad()
def offsets_on(model: nn.Module, files: Sequence[Path]) -> tuple[list[Record], tuple[int, int]]:
    """Offsets of the upgraded layers on pictures, as one batch, and the size of the pictures."""
    pictures = np.stack([cv2.imread(str(file)) for file in files])
    batch = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    preprocessor = model.data_preprocessor  # type: ignore[union-attr]
    with OffsetRecorder(model) as recorder:
        model.backbone((batch - preprocessor.mean) / preprocessor.std)  # type: ignore[operator,union-attr]
    return list(recorder.records.values()), pictures.shape[1:3]


def draw_taps(picture: np.ndarray, record: Record, scale: int = 3) -> np.ndarray:
    """A picture, enlarged, with the taps of a layer at nine positions before and after; offsets of picture 0."""
    canvas = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    canvas = (canvas * 0.75).astype(np.uint8)
    pixel = scale * picture.shape[0] / record.size[0]
    rows, columns = record.offset.shape[-2:]
    for y, x in [(i, j) for i in (0.2, 0.5, 0.8) for j in (0.2, 0.5, 0.8)]:
        row, column = int(y * rows), int(x * columns)
        plain = (record.grid[:, :, row, column] + 0.5) * pixel
        taps = (record.positions()[0, 0, :, :, row, column] + 0.5) * pixel
        for before, after in zip(_points(plain), _points(taps), strict=True):
            cv2.line(canvas, before, after, BEFORE, 1, cv2.LINE_AA)
        for points, colour, radius in ((plain, BEFORE, 3), (taps, AFTER, 5)):
            for point in _points(points):
                cv2.circle(canvas, point, radius, colour, -1, cv2.LINE_AA)
    return canvas


def _points(positions: Tensor) -> list[tuple[int, int]]:
    return [(round(x), round(y)) for y, x in positions.tolist()]


def draw_stretch(record: Record, side: int) -> np.ndarray:
    """How much wider a layer looks in each place, mean over pictures and taps: 1 is dark, the most is bright."""
    values = stretch(record).numpy()
    low, high = min(1.0, values.min()), values.max()
    shades = (255 * (values - low) / max(high - low, 1e-6)).astype(np.uint8)
    return cv2.applyColorMap(cv2.resize(shades, (side, side), interpolation=cv2.INTER_CUBIC), cv2.COLORMAP_VIRIDIS)


def profiles(
    records: Sequence[Record], camera: Geometry, size: tuple[int, int]
) -> dict[str, list[tuple[float, float]]]:
    """The map's magnification and each layer's stretch over the distance from the middle, 1 at the edge."""
    jacobian = camera.view(size, 'test', 0).jacobian(size)
    magnification = 1 / np.sqrt(np.abs(np.linalg.det(jacobian)))
    lines = {'what the camera magnifies': _over_radius(magnification)}
    for record in records:
        lines[f'how much wider {record.layer.removeprefix("backbone.")} looks'] = _over_radius(stretch(record).numpy())
    return lines


def _over_radius(values: np.ndarray, bins: int = 10) -> list[tuple[float, float]]:
    height, width = values.shape
    y, x = np.mgrid[0:height, 0:width]
    radius = 2 * np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5)
    which = (radius * bins).astype(int)
    return [((i + 0.5) / bins, float(values[which == i].mean())) for i in range(bins) if (which == i).any()]
