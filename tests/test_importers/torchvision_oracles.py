"""torchvision's networks as plain torch.nn.functional over parameters in its names; shares no code with the package."""

import math

import torch
import torch.nn.functional as F


def batch_norm(p, x, name):
    return F.batch_norm(x, *(p[f'{name}.{key}'] for key in ('running_mean', 'running_var', 'weight', 'bias')))


def resnet(p, x, prefix='', stride_in=2, dilations=(1, 1, 1, 1)):
    """A bottleneck ResNet on parameters named by torchvision; all four stages."""

    def norm(x, name):
        return batch_norm(p, x, name)

    x = F.relu(norm(F.conv2d(x, p[f'{prefix}conv1.weight'], stride=2, padding=3), f'{prefix}bn1'))
    x = F.max_pool2d(x, 3, 2, 1)
    outs = []
    for stage in range(1, 5):
        block = 0
        while f'{prefix}layer{stage}.{block}.conv1.weight' in p:
            name = f'{prefix}layer{stage}.{block}'
            dilation = dilations[stage - 1]
            stride = 2 if stage > 1 and block == 0 and dilation == 1 else 1
            dilation = max(1, dilation // 2) if block == 0 else dilation
            y = F.conv2d(x, p[f'{name}.conv1.weight'], stride=stride if stride_in == 1 else 1)
            y = F.relu(norm(y, f'{name}.bn1'))
            y = F.conv2d(
                y,
                p[f'{name}.conv2.weight'],
                stride=stride if stride_in == 2 else 1,
                padding=dilation,
                dilation=dilation,
            )
            y = F.relu(norm(y, f'{name}.bn2'))
            y = norm(F.conv2d(y, p[f'{name}.conv3.weight']), f'{name}.bn3')
            if f'{name}.downsample.0.weight' in p:
                x = norm(F.conv2d(x, p[f'{name}.downsample.0.weight'], stride=stride), f'{name}.downsample.1')
            x = F.relu(x + y)
            block += 1
        outs.append(x)
    return outs


def ssd_maps(p, x):
    """torchvision's SSD300 by hand: the six class maps and box maps."""

    def conv(x, name, **options):
        return F.conv2d(x, p[f'{name}.weight'], p[f'{name}.bias'], **options)

    for index in (0, 2, 'p', 5, 7, 'p', 10, 12, 14, 'c', 17, 19, 21):
        x = (
            F.max_pool2d(x, 2, ceil_mode=index == 'c')
            if isinstance(index, str)
            else F.relu(conv(x, f'backbone.features.{index}', padding=1))
        )
    maps = [p['backbone.scale_weight'].view(1, -1, 1, 1) * F.normalize(x)]
    x = F.max_pool2d(x, 2)
    for index in (1, 3, 5):
        x = F.relu(conv(x, f'backbone.extra.0.{index}', padding=1))
    x = F.relu(conv(F.max_pool2d(x, 3, 1, 1), 'backbone.extra.0.7.1', padding=6, dilation=6))
    maps.append(F.relu(conv(x, 'backbone.extra.0.7.3')))
    for level in range(1, 5):
        x = F.relu(conv(maps[-1], f'backbone.extra.{level}.0'))
        options = dict(stride=2, padding=1) if level < 3 else {}
        maps.append(F.relu(conv(x, f'backbone.extra.{level}.2', **options)))
    return [
        [conv(x, f'head.{head}_head.module_list.{i}', padding=1) for i, x in enumerate(maps)]
        for head in ('classification', 'regression')
    ]


def ssd_boxes(level, deltas):
    """Decoded boxes of a level's middle cell, (A, 4), with torchvision's clipped default boxes."""
    scales = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
    ratios, step = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))[level], (8, 16, 32, 64, 100, 300)[level]
    sides = [(scales[level],) * 2, (math.sqrt(scales[level] * scales[level + 1]),) * 2]
    for ratio in ratios:
        w, h = scales[level] * math.sqrt(ratio), scales[level] / math.sqrt(ratio)
        sides += [(w, h), (h, w)]
    sides = torch.tensor(sides).clamp(0, 1) * 300
    centre = deltas[:, :2] / 10 * sides + step / 2
    return torch.cat([centre, torch.exp(deltas[:, 2:] / 5) * sides], 1)


def deeplab(p, maps):
    """Class maps of DeepLabV3's head and of its auxiliary head over the backbone's maps."""

    def unit(x, conv, norm, **options):
        return F.relu(batch_norm(p, F.conv2d(x, p[f'{conv}.weight'], **options), norm))

    def classes(x, name):
        return F.conv2d(x, p[f'{name}.weight'], p[f'{name}.bias'])

    aspp = 'classifier.0.convs'
    branches = [unit(maps[3], f'{aspp}.0.0', f'{aspp}.0.1')]
    branches += [
        unit(maps[3], f'{aspp}.{i}.0', f'{aspp}.{i}.1', padding=d, dilation=d) for i, d in ((1, 12), (2, 24), (3, 36))
    ]
    pooled = unit(F.adaptive_avg_pool2d(maps[3], 1), f'{aspp}.4.1', f'{aspp}.4.2')
    branches.append(F.interpolate(pooled, size=maps[3].shape[2:], mode='bilinear', align_corners=False))
    x = unit(torch.cat(branches, 1), 'classifier.0.project.0', 'classifier.0.project.1')
    x = unit(x, 'classifier.1', 'classifier.2', padding=1)
    y = unit(maps[2], 'aux_classifier.0', 'aux_classifier.1', padding=1)
    return classes(x, 'classifier.4'), classes(y, 'aux_classifier.4')
