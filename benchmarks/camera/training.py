# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A short training loop whose whole step is a CUDA graph on a GPU, and the same arithmetic step by step on a CPU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdeform_upgrade import OffsetOptimizer

from ..datasets.geometry import IGNORED
from .arms import Groups
from .testbeds import Pictures


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train.

    Attributes:
        steps: optimizer steps.
        lr: peak rate of everything but the offsets.
        offset_lr: peak rate of the offsets.
        batch: pictures of a step.
        optimizer: ``'adamw'``, or ``'sgd'`` (momentum 0.9) beside Adam for the offsets.
        decay: weight decay of everything but the offsets.
        warmup: part of the steps in which the rate rises; it falls to zero as a polynomial of 0.9 after that.
    """

    steps: int
    lr: float
    offset_lr: float = 2e-3
    batch: int = 8
    optimizer: str = 'adamw'
    decay: float = 0.01
    warmup: float = 0.02

    def shape(self) -> Tensor:
        """The rate of every step over the peak."""
        step = torch.arange(self.steps, dtype=torch.float64)
        rise = (step + 1) / max(1, round(self.warmup * self.steps))
        return torch.minimum(rise, (1 - step / self.steps) ** 0.9).float()


@dataclass
class Job:
    """One training: a network whose groups train on ``data``.

    Attributes:
        seconds: what the training took, its share where several ran side by side; filled in by :func:`train`.
        loss: mean of the last tenth of the steps, filled in by :func:`train`.
    """

    model: nn.Module
    groups: Groups
    data: Pictures
    recipe: Recipe
    seed: int
    seconds: float = 0.0
    loss: float = 0.0


def train(jobs: Sequence[Job], loss: Callable[[nn.Module, Tensor, Tensor], Tensor], graphs: bool = True) -> None:
    """Train networks in place, on pictures drawn with replacement and mirrored at random, the same for each arm.

    On a GPU the steps of all jobs are replayed side by side, each in a stream of its own: one small network leaves
    most of a GPU idle. On a CPU, and where a loss asks the host (``graphs=False``), they train one after the other.
    """
    if jobs[0].data.pictures.device.type != 'cuda' or not graphs:
        for job in jobs:
            began = time.monotonic()
            steps = _Steps(job, loss)
            for _ in range(job.recipe.steps):
                steps.run()
            steps.finish(time.monotonic() - began)
        return
    began = time.monotonic()
    captured = [(steps := _Steps(job, loss), torch.cuda.Stream(), steps.capture()) for job in jobs]
    for _ in range(jobs[0].recipe.steps):
        for _, stream, graph in captured:
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for steps, _, _ in captured:
        steps.finish((time.monotonic() - began) / len(jobs))


class _Steps:
    """The steps of one job, none of which asks the host for anything."""

    def __init__(self, job: Job, loss: Callable[[nn.Module, Tensor, Tensor], Tensor]):
        self.job, self.loss, recipe = job, loss, job.recipe
        self.device = job.data.pictures.device
        torch.manual_seed(job.seed)
        rng = torch.Generator().manual_seed(job.seed)
        size = (recipe.steps, recipe.batch)
        self.chosen = torch.randint(len(job.data.labels), size, generator=rng).to(self.device)
        self.mirrored = (torch.rand(size, generator=rng) < 0.5).to(self.device)
        self.losses = torch.zeros(recipe.steps, device=self.device)
        self.step = torch.zeros(1, dtype=torch.long, device=self.device)
        self.optimizer = _optimizer(job.groups, recipe, self.device)
        self.shape = recipe.shape().to(self.device)

    def run(self) -> None:
        pictures, labels = self.job.data.batch(self._now(self.chosen), self._now(self.mirrored))
        value = self.loss(self.job.model, pictures, labels)
        value.backward()
        shape = self._now(self.shape)
        for group in self.optimizer.param_groups:
            if isinstance(group['lr'], Tensor):
                group['lr'].copy_(group['peak'] * shape)
            else:
                group['lr'] = group['peak'] * float(shape)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.index_copy_(0, self.step, value.detach().view(1))
        self.step.add_(1)

    def _now(self, table: Tensor) -> Tensor:
        # not table[step]: an index of no dimension would be read by the host
        return table.index_select(0, self.step).squeeze(0)

    def capture(self) -> torch.cuda.CUDAGraph:
        """A step as a CUDA graph; what the warm-up does to network and optimizers is undone."""
        kept = {name: value.clone() for name, value in self.job.model.state_dict().items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.run()
        with torch.no_grad():
            for name, value in self.job.model.state_dict().items():
                value.copy_(kept[name])
            for state in self.optimizer.state.values():
                for value in state.values():
                    if isinstance(value, Tensor):
                        value.zero_()
        self.step.zero_()
        torch.cuda.synchronize()
        return graph

    def finish(self, seconds: float) -> None:
        self.job.seconds = round(seconds, 2)
        self.job.loss = float(self.losses[-max(1, self.job.recipe.steps // 10) :].mean())


def _optimizer(groups: Groups, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimizer, beside Adam for the offsets where both train; on a GPU its rates are tensors."""
    cuda = device.type == 'cuda'
    peaks = {name: recipe.offset_lr if name == 'offsets' else recipe.lr for name in groups}
    rates = {name: torch.tensor(peak, device=device) if cuda else peak for name, peak in peaks.items()}
    fused = dict(fused=True, capturable=True) if cuda else {}
    base: torch.optim.Optimizer | None = None
    if 'rest' in groups and recipe.optimizer == 'sgd':
        base = torch.optim.SGD(
            groups['rest'], rates['rest'], momentum=0.9, weight_decay=recipe.decay, fused=True if cuda else None
        )
    elif 'rest' in groups:
        base = torch.optim.AdamW(groups['rest'], rates['rest'], weight_decay=recipe.decay, **fused)
    if 'offsets' in groups:
        offsets = torch.optim.Adam(groups['offsets'], rates['offsets'], **fused)
        base = offsets if base is None else OffsetOptimizer(base, offsets)
    assert base is not None
    for group in base.param_groups:
        group['peak'] = peaks['offsets' if group['params'][0] is groups.get('offsets', [None])[0] else 'rest']
    return base


def segmentation_loss(model: nn.Module, pictures: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy over the pixels that have a label."""
    return F.cross_entropy(model(pictures), labels.long(), ignore_index=IGNORED)


def mean_iou(model: nn.Module, data: Pictures, classes: int, batch: int = 32, predict: Callable | None = None) -> float:
    """mIoU in per cent over the classes that occur, as mmseg's ``IoUMetric`` has it."""
    counts = torch.zeros(classes * classes, dtype=torch.long, device=data.labels.device)
    with torch.no_grad(), evaluating(model):
        for first in range(0, len(data.labels), batch):
            rows = slice(first, first + batch)
            labels = data.labels[rows].long()
            found = (predict or (lambda pictures, _: model(pictures)))(data.pictures[rows], rows).argmax(1)
            seen = labels != IGNORED
            counts += torch.bincount(labels[seen] * classes + found[seen], minlength=classes * classes)
    table = counts.view(classes, classes).double()
    union = table.sum(0) + table.sum(1) - table.diag()
    return float(100 * (table.diag() / union)[union > 0].mean())


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
