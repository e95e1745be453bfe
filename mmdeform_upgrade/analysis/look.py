# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""One picture through a trained network, with everything that the figures of an upgrade need."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import clean_state_dict, refuse_lost_offsets, remap_state_dict
from ..config import read_config
from ..errors import CheckpointError, ConfigError
from ..importers.checks import flips_channels
from ..layers import upgraded_layers
from ..readers import read_checkpoint
from .complexity import hooked
from .offsets import OffsetRecorder, Record
from .receptive_field import offsets_at_zero, receptive_field

Point = tuple[float, float]
_APIS = {'mmdet': ('init_detector', 'inference_detector'), 'mmseg': ('init_model', 'inference_model')}


@dataclass(frozen=True)
class Look:
    """A picture as the network saw it, and where its upgraded layers looked."""

    picture: np.ndarray  # (H, W, 3) RGB, 0 to 255
    input: Tensor  # (1, 3, H, W), the normalised picture
    records: list[Record]  # of the layers that ran, in order
    prediction: Any  # what mmdet or mmseg returned


def look(model: nn.Module, image: str) -> Look:
    """Run the framework's own inference on the file of a picture and keep the offsets.

    Raises:
        ConfigError: the model has no upgraded layer, or is of another framework.
    """
    if not upgraded_layers(model):
        raise ConfigError('the network has no ZeroOffsetDCN: give the config and the checkpoint of an upgrade')
    seen: list[Tensor] = []
    backbone: nn.Module = model.backbone  # type: ignore[assignment]
    keep = backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with hooked([keep]), OffsetRecorder(model) as recorder:
        prediction = predict(model, image)
    return Look(_as_picture(model, seen[-1]), seen[-1], list(recorder.records.values()), prediction)


def predict(model: nn.Module, image: str) -> Any:
    """The framework's own inference on the file of a picture."""
    families = [c.__module__.split('.')[0] for c in type(model).__mro__]
    framework = next((family for family in families if family in _APIS), None)
    if framework is None:
        raise ConfigError(f'{type(model).__name__} is neither of mmdet nor of mmseg')
    return _api(framework)[1](model, image)


def _api(framework: str) -> list[Any]:
    """How a framework initialises a model, and infers with it."""
    return [getattr(import_module(f'{framework}.apis'), name) for name in _APIS[framework]]


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
    original = seen.prediction.metainfo['ori_shape']
    shape = seen.prediction.metainfo['img_shape']
    boxes = found[found.scores.argsort(descending=True)[:count]].bboxes.cpu()
    scale = (shape[0] / original[0], shape[1] / original[1])
    return [(float(y0 + y1) / 2 * scale[0], float(x0 + x1) / 2 * scale[1]) for x0, y0, x1, y1 in boxes]


def records_up_to(seen: Look, layer: str | None = None) -> list[Record]:
    """The layers that ran before one, and it; all of them without a name.

    Raises:
        ConfigError: none, or several, are called so, or have names that end so.
    """
    if layer is None:
        return seen.records
    names = [record.layer for record in seen.records]
    found = [i for i, name in enumerate(names) if f'.{name}'.endswith(f'.{layer}')]
    if len(found) != 1:
        raise ConfigError(
            f'{layer!r} is the name of {len(found)} upgraded layers, expected one; there are {", ".join(names)}'
        )
    return seen.records[: found[0] + 1]


@torch.no_grad()
def level_of(model: Any, seen: Look, record: Record) -> int:
    """Index of the backbone's first map with the size of a layer's output; the last where there is none."""
    sizes = [tuple(level.shape[-2:]) for level in model.backbone(seen.input)]
    own = tuple(record.offset.shape[-2:])
    return sizes.index(own) if own in sizes else len(sizes) - 1


def fields(model: Any, seen: Look, point: Point, level: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Effective receptive fields of a backbone's last map (or another) at a point, offsets at zero and as learned."""

    def features(images: Tensor) -> Any:
        return model.backbone(images)[-1 if level is None else level]

    with offsets_at_zero(model):
        before = receptive_field(features, seen.input, point)
    after = receptive_field(features, seen.input, point)
    return before.cpu().numpy(), after.cpu().numpy()


def load_network(config: str, checkpoint: str, device: str = 'cpu') -> nn.Module:
    """A trained network through its framework's own loader, which takes what fits; its checkpoint read safely.

    Raises:
        ConfigError: the config is neither mmdet's nor mmseg's, or there is no such device.
        CheckpointError: the checkpoint is an upgrade's and the config is not, or it does not fit the network.
    """
    cfg = read_config(config)
    check_device(device)
    scope = cfg.get('default_scope')
    if scope not in _APIS:
        raise ConfigError(f'{config}: default_scope is {scope!r}, expected mmdet or mmseg')
    with torch.no_grad():
        model: nn.Module = _api(scope)[0](cfg, f'baseline://{checkpoint}', device=device)
    state_dict, network = clean_state_dict(read_checkpoint(checkpoint)['state_dict']), model.state_dict()
    refuse_lost_offsets(checkpoint, state_dict, network)
    try:
        remap_state_dict(state_dict, network)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from error
    return model


def check_device(device: str) -> None:
    """Raise ConfigError for a device that PyTorch cannot use here."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # PyTorch has no common kind for it
        raise ConfigError(f'device {device!r} cannot be used here ({str(error).splitlines()[0]}); use cpu') from error
