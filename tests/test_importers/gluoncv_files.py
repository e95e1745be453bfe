"""MXNet parameter files of every version, and random full-size ones under the names of GluonCV's two networks.

Written from public descriptions of the formats; shares no code with the package. Values are chosen so that every step
of an import shows: all biases, gammas and statistics are random, variances are small enough for eps to count, and
activations stay of order one.
"""

import struct

import numpy as np
import torch

DIALECTS = ('structural', 'stripped', 'full', 'exported')
CODES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.uint8: 3,
    torch.int32: 4,
    torch.int8: 5,
    torch.int64: 6,
    torch.bool: 7,
    torch.int16: 8,
    torch.bfloat16: 12,
}
SSD_SIZES = {
    20: (51.2, 102.4, 189.4, 276.4, 363.52, 450.6, 492),
    80: (51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
}
SSD_STEPS = (16, 32, 64, 128, 256, 512)
SSD_RATIOS = ((1, 2, 0.5), *[(1, 2, 0.5, 3, 1 / 3)] * 3, *[(1, 2, 0.5)] * 2)
YOLO_ANCHORS = (((116, 90), (156, 198), (373, 326)), ((30, 61), (62, 45), (59, 119)), ((10, 13), (16, 30), (33, 23)))


def array_bytes(tensor, version=2, device=(1, 0)):
    """One array; versions 0 to 3."""
    shape = tensor.shape
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b''
    head = [] if version == 0 else [struct.pack('<I', 0xF993FAC7 + version)]
    if version >= 2:
        head.append(struct.pack('<i', 0))  # dense
    head.append(struct.pack(f'<I{len(shape)}I' if version == 0 else f'<i{len(shape)}q', len(shape), *shape))
    head.append(struct.pack('<3i', *device, CODES[tensor.dtype]))
    return b''.join(head) + data


def names_bytes(names):
    encoded = [name.encode() for name in names]
    return struct.pack('<Q', len(encoded)) + b''.join(struct.pack('<Q', len(name)) + name for name in encoded)


def list_bytes(tensors, version=2):
    arrays = b''.join(array_bytes(tensor, version) for tensor in tensors.values())
    return struct.pack('<3Q', 0x112, 0, len(tensors)) + arrays + names_bytes(tensors)


def write(path, tensors, version=2):
    with open(path, 'wb') as file:
        file.write(struct.pack('<3Q', 0x112, 0, len(tensors)))
        for tensor in tensors.values():
            file.write(array_bytes(tensor, version))
        file.write(names_bytes(tensors))
    return path


def write_ssd(path, classes=20, dialect='stripped', seed=0):
    """A random ssd_512_resnet50_v1 with its 367 arrays; returns them under stripped names."""
    tensors = ssd_tensors(classes, seed)
    write(path, rename_ssd(tensors, dialect))
    return tensors


def write_yolo(path, classes=20, dialect='structural', seed=0):
    """A random yolo3_darknet53 with its 372 arrays; returns them under structural names."""
    tensors = yolo_tensors(classes, seed)
    write(path, rename_yolo(tensors, dialect))
    return tensors


class _Random:
    """Draws parameters; ``power`` is the mean square of what a convolution takes."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors = {}

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def uniform(self, low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    def cell(self, conv, norm, channels, out, kernel, variance, bias=False, gain=1.0, power=1.0, stats='running'):
        var = variance * self.uniform(0.5, 1.5, out)
        std = (var / (channels * kernel**2 * power)).sqrt()
        self.tensors[f'{conv}weight'] = self.normal(out, channels, kernel, kernel) * std[:, None, None, None]
        if bias:
            self.tensors[f'{conv}bias'] = self.normal(out) * var.sqrt() / 2
        self.tensors[f'{norm}gamma'] = gain * self.uniform(0.5, 1.5, out)
        self.tensors[f'{norm}beta'] = self.normal(out) * 0.3
        self.tensors[f'{norm}{stats}_mean'] = self.normal(out) * var.sqrt() * 0.3
        self.tensors[f'{norm}{stats}_var'] = var

    def output(self, name, channels, kernel, scale, offset):
        """Scale and offset are given row by row."""
        std = scale / (channels * kernel**2) ** 0.5
        shape = (len(scale), channels, kernel, kernel)
        self.tensors[f'{name}weight'] = self.normal(*shape) * std[:, None, None, None]
        self.tensors[f'{name}bias'] = self.normal(len(offset)) * 0.5 + offset


def ssd_tensors(classes=20, seed=0):
    draw = _Random(seed)
    net = 'resnetv10_'
    draw.cell(f'{net}conv0_', f'{net}batchnorm0_', 3, 64, 7, 1e-3)
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        number, out = 0, 256 * 2 ** (stage - 1)
        for block in range(blocks):
            shapes = [
                (channels, out // 4, 1, True, 1.0),
                (out // 4, out // 4, 3, False, 1.0),
                (out // 4, out, 1, True, 0.4),
                (channels, out, 1, False, 0.7),
            ]
            for takes, gives, kernel, bias, gain in shapes if block == 0 else shapes[:3]:
                draw.cell(
                    f'{net}stage{stage}_conv{number}_',
                    f'{net}stage{stage}_batchnorm{number}_',
                    takes,
                    gives,
                    kernel,
                    1e-3,
                    bias,
                    gain,
                )
                number += 1
            channels = out
    for level, out in enumerate((512, 512, 256, 256)):
        draw.cell(f'expand_trans_conv{level}_', f'expand_trans_bn{level}_', channels, out, 1, 1e-2, stats='moving')
        draw.cell(f'expand_conv{level}_', f'expand_bn{level}_', out, out, 3, 1e-2, stats='moving')
        channels = out
    for level, (channels, anchors) in enumerate(zip((1024, 2048, 512, 512, 256, 256), (4, 6, 6, 6, 4, 4), strict=True)):
        background = torch.zeros(anchors, classes + 1)
        background[:, 0] = 4.0
        scale = torch.full((anchors * (classes + 1),), 1.5)
        draw.output(f'convpredictor{2 * level}_conv0_', channels, 3, scale, background.flatten())
        boxes = 4 * anchors
        draw.output(f'convpredictor{2 * level + 1}_conv0_', channels, 3, torch.ones(boxes), torch.zeros(boxes))
    for level in range(6):
        side = (128, 64, 32, 16, 16, 16)[level]
        draw.tensors[f'ssdanchorgenerator{level}_anchor_{level}'] = ssd_anchors(level, side, SSD_SIZES[classes])
    return draw.tensors


def ssd_anchors(level, side, sizes):
    """(1, 1, H, W, A * 4) as (cx, cy, w, h), from the description of gluoncv/model_zoo/ssd/anchor.py."""
    small, large = sizes[level], (sizes[level] * sizes[level + 1]) ** 0.5
    shapes = [(small, small), (large, large)]
    shapes += [(small * ratio**0.5, small / ratio**0.5) for ratio in SSD_RATIOS[level][1:]]
    grid = np.empty((side, side, len(shapes), 4))
    centres = (np.arange(side) + 0.5) * SSD_STEPS[level]
    grid[..., 0], grid[..., 1], grid[..., 2:] = centres[None, :, None], centres[:, None, None], np.array(shapes)
    return torch.from_numpy(grid.reshape(1, 1, side, side, -1)).float()


def rename_ssd(tensors, dialect):
    return {_ssd_name(name, dialect): tensor for name, tensor in tensors.items()}


def _ssd_name(name, dialect):
    head, _, last = name.partition('_conv0_')
    if dialect == 'stripped':
        return name
    if dialect in ('full', 'exported'):
        kind = 'aux:' if 'ing_mean' in name or 'ing_var' in name else 'arg:'
        name = 'ssd3_' + name.replace('resnetv10_', 'resnetv112_')
        return kind + name if dialect == 'exported' else name
    if head.startswith('convpredictor'):
        number = int(head[len('convpredictor') :])
        return f'{("class", "box")[number % 2]}_predictors.{number // 2}.predictor.{last}'
    if head.startswith('ssdanchorgenerator'):
        return f'anchor_generators.{name[-1]}.anchors'
    return 'features.' + name


def _yolo_cells():
    """(structural conv, structural norm, flat conv, flat norm, channels, out, kernel, gain), in order of execution."""
    cells, number = [], 0

    def darknet(place, channels, out, kernel, gain=1.0):
        nonlocal number
        cells.append(
            (
                f'{place}.0.',
                f'{place}.1.',
                f'darknetv30_conv{number}_',
                f'darknetv30_batchnorm{number}_',
                channels,
                out,
                kernel,
                gain,
            )
        )
        number += 1

    take = iter([f'stages.{stage}.{i}' for stage, length in enumerate((15, 9, 5)) for i in range(length)])
    darknet(next(take), 3, 32, 3)
    for stage, blocks in enumerate((1, 2, 8, 8, 4)):
        out = 64 * 2**stage
        darknet(next(take), out // 2, out, 3)
        for _ in range(blocks):
            place = next(take)
            darknet(f'{place}.body.0', out, out // 2, 1)
            darknet(f'{place}.body.1', out // 2, out, 3, 0.3)
    for level, (channels, width) in enumerate(((1024, 512), (768, 256), (384, 128))):
        for part in range(6):
            place = f'yolo_blocks.{level}.' + ('tip' if part == 5 else f'body.{part}')
            takes, gives, kernel = (width, 2 * width, 3) if part % 2 else (2 * width if part else channels, width, 1)
            flat = f'yolodetectionblockv3{level}'
            cells.append(
                (
                    f'{place}.0.',
                    f'{place}.1.',
                    f'{flat}_conv{part}_',
                    f'{flat}_batchnorm{part}_',
                    takes,
                    gives,
                    kernel,
                    1.0,
                )
            )
    for level, width in enumerate((512, 256)):
        cells.append(
            (
                f'transitions.{level}.0.',
                f'transitions.{level}.1.',
                f'conv{level}_',
                f'batchnorm{level}_',
                width,
                width // 2,
                1,
                1.0,
            )
        )
    return cells


def yolo_tensors(classes=20, seed=0):
    draw = _Random(seed)
    for conv, norm, _, _, channels, out, kernel, gain in _yolo_cells():
        draw.cell(conv, norm, channels, out, kernel, 1e-2, gain=gain)
    for level, channels in enumerate((1024, 512, 256)):
        scale = torch.tensor([1.0, 1.0, 0.5, 0.5, 1.5] + [1.5] * classes).repeat(3)
        offset = torch.tensor([0.0, 0.0, 0.0, 0.0, -2.0] + [-2.0] * classes).repeat(3)
        draw.output(f'yolo_outputs.{level}.prediction.', channels, 1, scale, offset)
        draw.tensors[f'yolo_outputs.{level}.anchors'] = torch.tensor(YOLO_ANCHORS[level]).float().reshape(1, 1, 3, 2)
        x, y = np.meshgrid(np.arange(128), np.arange(128))
        draw.tensors[f'yolo_outputs.{level}.offsets'] = torch.from_numpy(np.stack([x, y], -1)[None, None]).float()
    return draw.tensors


def rename_yolo(tensors, dialect):
    if dialect == 'structural':
        return dict(tensors)
    flat = {place: name for cell in _yolo_cells() for place, name in zip(cell[:2], cell[2:4], strict=True)}
    flat.update({f'yolo_outputs.{i}.prediction.': f'yolooutputv3{i}_conv0_' for i in range(3)})
    renamed = {}
    for name, tensor in tensors.items():
        stem, last = name[: name.rindex('.') + 1], name[name.rindex('.') + 1 :]
        new = f'yolooutputv3{stem[-2]}_{last[:-1]}_{stem[-2]}' if last in ('anchors', 'offsets') else flat[stem] + last
        if dialect in ('full', 'exported') and not new.startswith('darknet'):
            new = 'yolov38_' + new
        renamed[f'{"aux" if "running" in last else "arg"}:{new}' if dialect == 'exported' else new] = tensor
    return renamed
