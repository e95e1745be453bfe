# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""One picture through a trained network, with everything that the figures of an upgrade need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..config.settings import type_name, unwrapped_datasets
from ..errors import ConfigError, DataError
from ..importers.checks import flips_channels
from ..layers import upgraded_layers
from .complexity import hooked
from .offsets import OffsetRecorder, Record
from .receptive_field import computed_from, offsets_at_zero, receptive_field

Point = tuple[float, float]
_INFERENCE = {'mmdet': 'inference_detector', 'mmseg': 'inference_model'}  # of each framework's apis


@dataclass(frozen=True)
class Look:
    """A picture as the network saw it, and where its upgraded layers looked."""

    picture: np.ndarray  # (H, W, 3) RGB, 0 to 255
    input: Tensor  # (1, 3, H, W), the normalised picture
    records: list[Record]  # of the layers that ran, in order
    prediction: Any  # what mmdet or mmseg returned
    windows: int = 1  # of slide inference, whose last one this is


def look(model: nn.Module, image: str) -> Look:
    """Run the framework's own inference on the file of a picture and keep the offsets.

    Raises:
        ConfigError: the model has no upgraded layer, or is of another framework.
    """
    if not upgraded_layers(model):
        raise ConfigError('the network has no ZeroOffsetDCN: give the config and the checkpoint of an upgrade')
    seen: list[Tensor] = []
    backbone: Any = getattr(model, 'backbone', None)
    if backbone is None:
        raise ConfigError(
            f'{type(model).__name__} has no backbone of its own: give the config and the checkpoint of one detector or '
            'segmentor (of a teacher and a student, of one of them)'
        )
    keep = backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with hooked([keep]), OffsetRecorder(model) as recorder:
        prediction = predict(model, image)
    return Look(_as_picture(model, seen[-1]), seen[-1], list(recorder.records.values()), prediction, len(seen))


def predict(model: nn.Module, image: str) -> Any:
    """The framework's own inference on the file of a picture.

    Raises:
        ConfigError: the model is of another framework, or its config has no test_dataloader.
        DataError: the file cannot be read as a picture.
    """
    families = [c.__module__.split('.')[0] for c in type(model).__mro__]
    framework = next((family for family in families if family in _INFERENCE), None)
    if framework is None:
        raise ConfigError(f'{type(model).__name__} is neither of mmdet nor of mmseg')
    cfg: Any = model.cfg
    if not (cfg.get('test_dataloader') or (framework == 'mmseg' and cfg.get('test_pipeline'))):
        raise ConfigError('the config has no test_dataloader, whose pipeline loads pictures: set it')
    if framework == 'mmseg':  # which looks nowhere else, and takes out annotations only where a string names them
        pipeline = cfg.get('test_pipeline') or unwrapped_datasets(cfg.test_dataloader.dataset)[0].pipeline
        cfg.test_pipeline = [part for part in pipeline if type_name(part['type']) != 'LoadAnnotations']
    try:
        return getattr(import_module(f'{framework}.apis'), _INFERENCE[framework])(model, image)
    except AssertionError as error:
        if 'failed to load image' not in str(error):
            raise
        raise DataError(f'{image} cannot be read as a picture') from error


def _as_picture(model: Any, input: Tensor) -> np.ndarray:
    normalised = model.data_preprocessor
    picture = input[0].float()
    if getattr(normalised, '_enable_normalize', False):
        picture = picture * normalised.std.to(picture) + normalised.mean.to(picture)
    if not flips_channels(normalised):
        picture = picture.flip(0)  # pictures are read as BGR
    return picture.clamp(0, 255).round().byte().permute(1, 2, 0).cpu().numpy()


def object_points(seen: Look, count: int) -> list[Point]:
    """Centres of the surest detections, (y, x); where there are none, points on the diagonal."""
    found = getattr(seen.prediction, 'pred_instances', None)
    height, width = seen.picture.shape[:2]
    if found is None or not len(found):
        return [(height * (i + 1) / (count + 1), width * (i + 1) / (count + 1)) for i in range(count)]
    about = seen.prediction.metainfo
    scale = about.get('scale_factor', (1.0, 1.0))  # width, height
    top, _, left, _ = about.get('border', (0, 0, 0, 0))  # that CenterNet and CornerNet pad
    surest = found[found.scores.argsort(descending=True)[:count]].cpu()
    points = (surest.bboxes[:, :2] + surest.bboxes[:, 2:4]) / 2
    if 'masks' in surest and not surest.bboxes.any():  # SOLO has no boxes
        for i, mask in enumerate(surest.masks):
            if mask.any():
                points[i] = mask.nonzero().float().mean(0).flip(0)
    return [(float(y * scale[1] + top), float(x * scale[0] + left)) for x, y in points]


def layers_up_to(model: nn.Module, seen: Look, layer: str | None = None) -> list[Record]:
    """The upgraded layers that one of them reads through, and it; that is the last that ran without a name.

    Of layers side by side, such as the branches of a head, one way back is followed.

    Raises:
        ConfigError: none, or several, are called so, or have names that end so; or it runs on regions of the picture.
    """
    if not seen.records:
        raise ConfigError('none of the upgraded layers runs in inference: there is nothing to show')
    names = [record.layer for record in seen.records]
    found = [i for i, name in enumerate(names) if layer is None or f'.{name}'.endswith(f'.{layer}')]
    if layer is not None and len(found) != 1:
        raise ConfigError(
            f'{layer!r} is the name of {len(found)} upgraded layers, expected one; there are {", ".join(names)}'
        )
    last = seen.records[found[-1]]
    if len(last.offset) != len(seen.input):
        whole = [record.layer for record in seen.records if len(record.offset) == len(seen.input)]
        raise ConfigError(
            f'{last.layer} runs on {len(last.offset)} regions of the picture, which has no place of its own for each '
            f'position; layers that run on the whole picture: {", ".join(whole) or "none"}'
        )
    way, before = [last], seen.records[: found[-1]]
    passes = _passes(model, seen, seen.input.clone().requires_grad_(), [record.layer for record in (*before, last)])
    read = computed_from(passes[last.layer].before)
    for record in reversed(before):
        if record.layer in passes and passes[record.layer].after in read:
            way.insert(0, record)
            read = computed_from(passes[record.layer].before)
    return way


def fields(model: nn.Module, seen: Look, point: Point, layer: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Effective receptive fields of an upgraded layer's output at a point, offsets at zero and as learned.

    ``layer`` is a record's; without it, the last that ran.
    """
    name = layer or seen.records[-1].layer

    def features(images: Tensor) -> Tensor:
        return _passes(model, seen, images, [name])[name].output

    with offsets_at_zero(model):
        before = receptive_field(features, seen.input, point)
    after = receptive_field(features, seen.input, point)
    return before.cpu().numpy(), after.cpu().numpy()


class _Pass(NamedTuple):
    """A layer's pass over its largest map: the autograd nodes of its input and of its output."""

    before: Any
    after: Any
    output: Tensor


def _passes(model: Any, seen: Look, images: Tensor, names: list[str]) -> dict[str, _Pass]:
    """Run as much of the network as some layers need, and keep their passes."""
    found: dict[str, _Pass] = {}

    def keep(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if name not in found or output.numel() >= found[name].output.numel():
            found[name] = _Pass(args[0].grad_fn, output.grad_fn, output)

    hooks = [model.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    with torch.enable_grad(), hooked(hooks):
        if all(name.startswith('backbone.') for name in names):
            model.backbone(images)
        elif all(name.startswith(('backbone.', 'neck.')) for name in names):
            model.extract_feat(images)
        else:
            try:
                model(images, [seen.prediction], mode='tensor')
            except Exception as error:  # of any framework's head
                raise ConfigError(
                    f'{type(model).__name__} does not run outside of its inference ({type(error).__name__}: {error}), so that '
                    f'{names[-1]} cannot be followed back; --layer names one of the backbone or neck'
                ) from error
    return found


def check_device(device: str) -> None:
    """Raise ConfigError for a device that PyTorch cannot use here."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # PyTorch has no common kind for it
        raise ConfigError(f'device {device!r} cannot be used here ({str(error).splitlines()[0]}); use cpu') from error
