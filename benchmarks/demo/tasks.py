# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What the demo does its job on: a segmentor or a detector, each with its baseline, camera and score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..camera.testbeds import Geometry
from ..tool_runs import ROOT

FOLDER = ROOT / 'benchmarks' / 'demo'


@dataclass(frozen=True)
class Task:
    """A baseline and what it meets.

    Attributes:
        name: ``'segmentation'`` or ``'detection'``.
        bed: test bed of ``benchmarks.camera`` that its scenes are of.
        baseline: name of its config and of its checkpoint.
        camera: text of the new camera's map.
        metric: the score's name in the frameworks' logs.
        score: its name for people.
        factor: per cent over the logs' figure.
        lr_mult: rate of the fine-tune over the baseline's.
        command: what repeats the demo.
    """

    name: str
    bed: str
    baseline: str
    camera: str
    metric: str
    score: str
    factor: float
    lr_mult: float
    command: str

    @property
    def config(self) -> Path:
        return FOLDER / 'configs' / f'{self.baseline}.py'

    @property
    def checkpoint(self) -> Path:
        return FOLDER / 'checkpoints' / f'{self.baseline}.pth'

    @property
    def boxes(self) -> bool:
        return self.name == 'detection'

    @property
    def geometry(self) -> Geometry:
        return Geometry.parse(self.camera)


TASKS = {
    'segmentation': Task('segmentation', 'shapes', 'fcn_r18_shapes', 'fisheye', 'mIoU', 'mIoU', 1, 2, 'make demo'),
    'detection': Task(
        *('detection', 'shape-boxes', 'fcos_r18_shapes', 'fisheye:middle=1.5,rim=0.6'),
        *('coco/bbox_mAP', 'AP', 100, 1.5, 'make demo TASK=detection'),
    ),
}
