"""GluonCV's networks as plain torch.nn.functional over the stored parameters, and its decoding and NMS.

Written from descriptions of gluoncv/model_zoo, of MXNet's operators and of the public symbol file of
ssd_512_resnet50_v1_voc; shares no code with the package or with mmdet.
"""

from pathlib import Path

import cv2
import matplotlib
import torch
import torch.nn.functional as F

PHOTO = Path(matplotlib.get_data_path()) / 'sample_data' / 'grace_hopper.jpg'  # public domain, 512 x 600


class Walk:
    """Applies the parameters of one network."""

    def __init__(self, tensors, dtype):
        self.tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}

    def conv(self, x, name, stride=1, padding=0):
        return F.conv2d(x, self.tensors[f'{name}weight'], self.tensors.get(f'{name}bias'), stride, padding)

    def norm(self, x, name, eps, fix_gamma=False, stats='running'):
        get = self.tensors.__getitem__
        gamma = torch.ones_like(get(f'{name}gamma')) if fix_gamma else get(f'{name}gamma')
        mean, var = (get(f'{name}{stats}_{part}')[:, None, None] for part in ('mean', 'var'))
        return (x - mean) / (var + eps).sqrt() * gamma[:, None, None] + get(f'{name}beta')[:, None, None]


def ssd_maps(tensors, x):
    """Stripped names. Per level (class map, box map), in GluonCV's own order of channels."""
    walk = Walk(tensors, x.dtype)

    def cell(x, stage, number, stride=1, padding=0):
        x = walk.conv(x, f'resnetv10_{stage}conv{number}_', stride, padding)
        return walk.norm(x, f'resnetv10_{stage}batchnorm{number}_', 1e-5)

    x = F.max_pool2d(F.relu(cell(x, '', 0, 2, 3)), 3, 2, 1)
    features = []
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        name, number = f'stage{stage}_', 0
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            y = F.relu(cell(x, name, number, stride))
            y = F.relu(cell(y, name, number + 1, 1, 1))
            y = cell(y, name, number + 2)
            shortcut = cell(x, name, number + 3, stride) if block == 0 else x
            x = F.relu(y + shortcut)
            number += 4 if block == 0 else 3
        features.append(x)
    features = features[2:]
    for level in range(4):
        for name, stride, padding in (('expand_trans', 1, 0), ('expand', 2, 1)):
            x = walk.conv(x, f'{name}_conv{level}_', stride, padding)
            x = F.relu(walk.norm(x, f'{name}_bn{level}_', 1e-3, fix_gamma=True, stats='moving'))
        features.append(x)
    return [
        tuple(walk.conv(x, f'convpredictor{2 * level + part}_conv0_', 1, 1) for part in (0, 1))
        for level, x in enumerate(features)
    ]


def ssd_decode(maps, anchors, classes):
    """Boxes (n, 4) as corners and class scores (n, classes) of one picture, over all levels."""
    boxes, scores = [], []
    for (class_map, box_map), grid in zip(maps, anchors, strict=True):
        height, width = class_map.shape[-2:]
        logits = class_map[0].permute(1, 2, 0).reshape(-1, classes + 1)
        x, y, w, h = (box_map[0].permute(1, 2, 0).reshape(-1, 4) * box_map.new_tensor([0.1, 0.1, 0.2, 0.2])).unbind(1)
        cx, cy, aw, ah = grid[0, 0, :height, :width].to(x).reshape(-1, 4).unbind(1)
        boxes.append(_corners(cx + x * aw, cy + y * ah, aw * w.exp(), ah * h.exp()))
        scores.append(logits.softmax(1)[:, 1:])
    return torch.cat(boxes), torch.cat(scores)


def yolo_maps(tensors, x):
    """Structural names. The three raw maps, deepest first."""
    walk = Walk(tensors, x.dtype)

    def cell(x, place, stride=1, padding=0):
        x = walk.norm(walk.conv(x, f'{place}.0.', stride, padding), f'{place}.1.', 1e-5)
        return F.leaky_relu(x, 0.1)

    layers = iter([(stage, index) for stage, length in enumerate((15, 9, 5)) for index in range(length)])
    routes = []

    def place():
        stage, index = next(layers)
        return f'stages.{stage}.{index}'

    x = cell(x, place(), 1, 1)
    for stage, blocks in enumerate((1, 2, 8, 8, 4)):
        x = cell(x, place(), 2, 1)
        for _ in range(blocks):
            name = place()
            x = x + cell(cell(x, f'{name}.body.0'), f'{name}.body.1', 1, 1)
        if stage >= 2:
            routes.append(x)
    outputs = []
    for level in range(3):
        for part in range(5):
            x = cell(x, f'yolo_blocks.{level}.body.{part}', 1, part % 2)
        tip = cell(x, f'yolo_blocks.{level}.tip', 1, 1)
        outputs.append(walk.conv(tip, f'yolo_outputs.{level}.prediction.'))
        if level < 2:
            x = cell(x, f'transitions.{level}')
            x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
            x = torch.cat([x, routes[1 - level]], 1)
    return outputs


def yolo_decode(maps, anchors, classes):
    """Boxes (n, 4) as corners and scores (n, classes) of one picture, over all levels."""
    boxes, scores = [], []
    for output, sizes, stride in zip(maps, anchors, (32, 16, 8), strict=True):
        height, width = output.shape[-2:]
        raw = output[0].permute(1, 2, 0).reshape(height, width, 3, 5 + classes)
        columns, rows = torch.arange(width).view(1, -1, 1), torch.arange(height).view(-1, 1, 1)
        cx, cy = (raw[..., 0].sigmoid() + columns) * stride, (raw[..., 1].sigmoid() + rows) * stride
        w, h = raw[..., 2].exp() * sizes.reshape(3, 2)[:, 0], raw[..., 3].exp() * sizes.reshape(3, 2)[:, 1]
        boxes.append(_corners(cx, cy, w, h).reshape(-1, 4))
        scores.append((raw[..., 4:5].sigmoid() * raw[..., 5:].sigmoid()).reshape(-1, classes))
    return torch.cat(boxes), torch.cat(scores)


def _corners(cx, cy, w, h):
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1)


def box_nms(boxes, scores, threshold=0.45, valid=0.01, topk=400, keep=100):
    """MXNet's box_nms over all pairs of a box and a class, suppression within a class: (class, score, x1 .. y2)."""
    index, label = torch.nonzero(scores > valid, as_tuple=True)
    score, order = scores[index, label].sort(descending=True)
    order, score = order[:topk], score[:topk]
    label, boxes = label[order], boxes[index[order]]
    alive = torch.ones(len(score), dtype=torch.bool)
    left_top = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    overlap = (torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - left_top).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    overlap = overlap / (area[:, None] + area[None] - overlap)
    for i in range(len(score)):
        if alive[i]:
            alive[i + 1 :] &= ~((overlap[i, i + 1 :] > threshold) & (label[i + 1 :] == label[i]))
    rows = torch.cat([label[:, None].to(boxes), score[:, None], boxes], 1)
    return rows[alive][:keep]


def photo(size, interpolation):
    """The photograph as GluonCV's presets feed it, (1, 3, size, size), and (width, height) before."""
    picture = cv2.imread(str(PHOTO))[:, :, ::-1]
    resized = cv2.resize(picture, (size, size), interpolation=interpolation)
    x = torch.from_numpy(resized.copy()).permute(2, 0, 1)[None].float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean[:, None, None]) / std[:, None, None], picture.shape[1::-1]


def spread_outputs(tensors, outputs):
    """Parameters whose outputs vary over the picture, so that NMS has something to choose from.

    A random network answers nearly the same everywhere. ``outputs``: name of each last convolution to its map on the
    picture, and the mean and the deviation to give each of its rows.
    """
    changed = dict(tensors)
    for name, (found, mean, std) in outputs.items():
        flat = found[0].flatten(1)
        factor = std / flat.std(1, correction=0).clamp(min=0.1)
        changed[f'{name}weight'] = tensors[f'{name}weight'] * factor[:, None, None, None]
        changed[f'{name}bias'] = (tensors[f'{name}bias'] - flat.mean(1)) * factor + mean
    return changed


def assert_same_detections(found, expected, pixels=0.02, score=1e-4):
    """``found``: what an mmdet model predicts, best first; it may go on after GluonCV's list, below its last score."""
    found = torch.cat([found.labels[:, None].float(), found.scores[:, None], found.bboxes], 1)
    assert len(expected) > 20 and len(expected[:, 0].unique()) > 4, 'a test without detections shows nothing'
    assert len(found) >= len(expected)
    free = torch.ones(len(found), dtype=torch.bool)
    for row in expected:
        close = (found[:, 0] == row[0]) & ((found[:, 1] - row[1]).abs() < score) & free
        close &= (found[:, 2:] - row[2:]).abs().amax(1) < pixels
        assert close.any(), f'{row.tolist()} was not found'
        free[torch.nonzero(close)[0]] = False
    assert not free.any() or found[free, 1].max() < expected[-1, 1] + score
