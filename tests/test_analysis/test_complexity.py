"""Parameters and FLOPs as MMEngine's own tool counts them."""

import pytest
from mmengine.analysis import get_model_complexity_info
from torch import nn

from mmdeform_upgrade import upgrade_


def _count(network, channels, size):
    found = get_model_complexity_info(network, (channels, size, size), show_table=False, show_arch=False)
    return found['params'], found['flops']


@pytest.mark.parametrize(
    'k,M,N,stride,size,groups',
    [(3, 16, 24, 1, 10, 1), (3, 16, 24, 2, 11, 2), (5, 8, 6, 1, 9, 1), (3, 64, 64, 1, 80, 1)],
)
def test_counts_follow_the_papers_formula(k, M, N, stride, size, groups):
    network = nn.Sequential(nn.Conv2d(M, N, k, stride, k // 2))
    positions = ((size - 1) // stride + 1) ** 2
    assert _count(network, M, size) == (k * k * M * N + N, k * k * M * N * positions)
    upgrade_(network, 'last:1', deform_groups=groups)
    offsets = 2 * groups * k * k
    params, flops = _count(network, M, size)
    assert params == k * k * M * N + N + offsets * M * k * k + offsets
    assert flops == (k * k * M * N + offsets * M * k * k + 4 * k * k * M) * positions


def test_a_grouped_convolution_counts_its_groups_only():
    network = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, groups=4))
    upgrade_(network, 'last:1')
    assert _count(network, 8, 6) == (9 * 2 * 12 + 12 + 18 * 8 * 9 + 18, (9 * 2 * 12 + 18 * 8 * 9 + 4 * 9 * 8) * 36)


def test_a_whole_detector_counts_more_after_an_upgrade(tiny_config, tiny_upgrade):
    from mmengine.config import Config

    from ..conftest import build

    plain, upgraded = (_count(build(Config.fromfile(path)).backbone, 3, 96) for path in (tiny_config, tiny_upgrade))
    # layer4 has 64 channels at 3x3 positions; its first convolution sees 32 channels.
    added = [(18 * M * 9 + 18, (18 * M * 9 + 4 * 9 * M) * 9) for M in (64, 64, 64)]
    assert upgraded[0] - plain[0] == sum(params for params, _ in added)
    assert upgraded[1] - plain[1] == sum(flops for _, flops in added)
