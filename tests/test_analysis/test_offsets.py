"""Recorded offsets, their statistics and the points that they lead to."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmdeform_upgrade import ZeroOffsetDCN, upgrade_
from mmdeform_upgrade.analysis.offsets import OffsetRecorder, sampling_points, share_that_left, statistics
from mmdeform_upgrade.analysis.receptive_field import offsets_at_zero, receptive_field, width
from mmdeform_upgrade.ops import deform_conv2d


def _stack(depth, bias=(0.0, 0.0), size=9, stride=1):
    """Upgraded 3x3 layers whose offsets are the same everywhere, and the records of one pass."""
    net = nn.Sequential(*(nn.Conv2d(2, 2, 3, stride, 1) for _ in range(depth)))
    upgrade_(net, f'last:{depth}')
    for layer in net:
        layer.conv_offset.bias.data.copy_(torch.tensor(bias).repeat(9))
    with OffsetRecorder(net) as recorder:
        net(torch.randn(1, 2, size, size))
    return net, list(recorder.records.values())


def test_records_are_kept_in_order_and_no_hook_stays():
    net, records = _stack(3)
    assert [record.layer for record in records] == ['0', '1', '2']
    assert not any(layer.conv_offset._forward_hooks for layer in net)


def test_recorded_positions_are_those_that_the_operator_samples():
    torch.manual_seed(1)
    layer = ZeroOffsetDCN(4, 3, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), deform_groups=2)
    nn.init.normal_(layer.conv_offset.weight)
    images = torch.randn(2, 4, 7, 8)
    with OffsetRecorder(layer) as recorder:
        layer(images)
    (record,) = recorder.records.values()
    # A map that holds its own coordinates, sampled by a kernel of one tap, gives back where it was sampled.
    coordinate = torch.stack(torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing='ij')).unsqueeze(0)
    where = record.positions()[0, 1, 3] + 20  # (2, Ho, Wo), inside the map
    ho, wo = where.shape[1:]
    grid = torch.stack(torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing='ij'))[:, :ho, :wo]
    full = torch.zeros(1, 2, 60, 60)
    full[0, :, :ho, :wo] = where - grid
    found = deform_conv2d(coordinate, full, torch.eye(2).view(2, 2, 1, 1))[0, :, :ho, :wo]
    torch.testing.assert_close(found, where, atol=1e-4, rtol=1e-5)


def test_statistics_of_known_offsets():
    _, (record,) = _stack(1, bias=(3.0, -4.0))
    found = statistics(record)
    assert (found.mean, found.percentile95, found.largest) == pytest.approx((5.0, 5.0, 5.0))
    y, x = torch.meshgrid(torch.arange(-1, 2), torch.arange(-1, 2), indexing='ij')
    inside = sum(
        int(0 <= i + dy + 3 <= 8 and 0 <= j + dx - 4 <= 8)
        for i in range(9)
        for j in range(9)
        for dy, dx in zip(y.flatten(), x.flatten(), strict=True)
    )
    assert found.outside == pytest.approx(1 - inside / (81 * 9))


def test_zero_offsets_leave_only_the_padding_outside():
    _, (record,) = _stack(1)
    assert statistics(record).largest == 0
    # Of 27 taps in each direction, 25 are on one of the 9 pixels.
    assert statistics(record).outside == pytest.approx(1 - (25 / 27) ** 2)


def test_padding_counts_for_no_tap_that_left():
    _, (record,) = _stack(1)
    assert share_that_left(record) == 0
    assert share_that_left(replace(record, offset=record.offset + 100)) == pytest.approx(1)


def test_an_offset_that_is_not_finite_shows():
    _, (record,) = _stack(1, bias=(math.nan, 0.0))
    assert math.isnan(statistics(record).largest)


@pytest.mark.parametrize('depth,reach', [(1, 1), (2, 2), (3, 3)])
def test_zero_offsets_sample_the_usual_grid_through_stacked_layers(depth, reach):
    _, records = _stack(3, size=15)
    points = sampling_points(records, (7, 7), (15, 15), depth)
    assert points.shape == (9**depth, 2)
    expected = {(7 + dy, 7 + dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)}
    assert {tuple(point) for point in points.tolist()} == expected


def test_offsets_add_up_through_stacked_layers():
    _, records = _stack(2, bias=(2.0, -1.0), size=15)
    points = sampling_points(records, (7, 7), (15, 15), 2)
    assert points.mean(0).tolist() == pytest.approx([11.0, 5.0])


def test_points_are_in_pixels_of_the_picture():
    _, records = _stack(2, size=16, stride=2)  # 16 -> 8 -> 4
    points = sampling_points(records, (7.5, 7.5), (64, 64), 1)  # the picture is 8 times as large as the first map
    assert points.shape == (9, 2)
    # Output position (0, 0) of 4x4 reads rows -1, 0, 1 of 8x8, whose pixels are 8 of the picture wide.
    assert sorted(set(points[:, 0].tolist())) == pytest.approx([-4.5, 3.5, 11.5])


def test_the_receptive_field_of_a_plain_stack_is_its_window():
    net, _ = _stack(2, size=15)
    field = receptive_field(net, torch.randn(1, 2, 15, 15), (7, 7))
    assert field.shape == (15, 15) and float(field.sum()) == pytest.approx(1, abs=1e-5)
    touched = field.nonzero()
    assert touched.min(0).values.tolist() == [5, 5] and touched.max(0).values.tolist() == [9, 9]


def test_offsets_move_and_widen_the_receptive_field():
    net, _ = _stack(1, bias=(3.0, 0.0), size=15)
    net[0].conv_offset.bias.data[0] = -3.0  # the first tap goes up, the others down
    images = torch.randn(1, 2, 15, 15)
    after = receptive_field(net, images, (7, 7))
    with offsets_at_zero(net):
        before = receptive_field(net, images, (7, 7))
    assert before.nonzero()[:, 0].unique().tolist() == [6, 7, 8]
    assert after.nonzero()[:, 0].unique().tolist() == [3, 9, 10, 11]
    assert width(after) > width(before) > 0 == width(torch.zeros(8, 8))
    assert torch.equal(receptive_field(net, images, (7, 7)), after), 'the context leaves nothing behind'
