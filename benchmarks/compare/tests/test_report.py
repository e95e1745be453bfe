"""Numbers of finished runs, on hand-made results."""

import pytest

from benchmarks import plots
from benchmarks.compare import Result, summarise
from benchmarks.compare.depth import depth_table
from benchmarks.compare.report import curves
from benchmarks.compare.spread import Spread, mean_curve, paired, reached


def _result(arm, seed, score, curve, length=4):
    return Result(arm, seed, score, curve, length, 'epochs', 60.0 * length, 'epoch_4.pth', '0' * 64)


RESULTS = [
    _result('control', 0, 0.52, [(1, 0.50)], 1),
    _result('control', 1, 0.50, [(1, 0.48)], 1),
    _result('upgraded', 0, 0.55, [(0, 0.49), (1, 0.54)], 1),
    _result('upgraded', 1, 0.54, [(0, 0.47), (1, 0.50)], 1),
    _result('baseline', 0, 0.51, [(2, 0.3), (4, 0.49)]),
    _result('baseline', 1, 0.49, [(2, 0.4), (4, 0.47)]),
    _result('retrained', 0, 0.56, [(2, 0.4), (4, 0.53)]),
    _result('retrained', 1, 0.53, [(2, 0.4), (4, 0.52)]),
]


def test_a_spread_is_the_mean_and_the_sample_deviation():
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(2.0, 1.0, 3)
    assert Spread.of([0.4459]).text() == '44.59'
    assert Spread.of([0.01, 0.03]).text(sign=True) == '+2.00 ± 1.41'


def test_differences_are_paired_by_seed():
    assert paired({0: 3.0, 1: 5.0, 2: 9.0}, {0: 1.0, 1: 1.0}) == Spread(3.0, pytest.approx(2**0.5), 2)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_a_score_is_reached_at_the_first_step_that_has_it():
    assert reached([(1, 0.1), (2, 0.3), (3, 0.2)], 0.3) == 2
    assert reached([(1, 0.1)], 0.3) is None


def test_a_mean_curve_holds_the_steps_that_all_curves_have():
    assert mean_curve([[(1, 0.0), (2, 1.0)], [(2, 3.0), (3, 1.0)]]) == [(2, 2.0, 1.0, 3.0)]
    assert mean_curve([]) == []


def test_the_table_holds_every_arm_in_order_and_the_differences():
    text = summarise(RESULTS)
    arms = [line.split('|')[1].strip() for line in text.splitlines() if line.startswith('| ')]
    assert arms == ['arm', 'baseline', 'retrained', 'upgraded', 'control']
    assert '| upgraded | 4 + 1 epochs | 0, 1 | 54.50 ± 0.71 | 1.0 |' in text
    assert '- upgraded minus control, seed by seed: +3.50 ± 0.71 points (2 seeds)' in text
    assert '- upgraded minus retrained, seed by seed: +0.00 ± 1.41 points (2 seeds)' in text
    ends = 'the retrained network ends at {} on the validation set after 4 epochs (4.0 minutes); upgraded {}'
    assert 'seed 0: ' + ends.format('53.00', 'reaches it after 1 of 1 epochs (1.0 minutes)') in text
    assert 'seed 1: ' + ends.format('52.00', 'does not reach it in 1 epochs') in text


def test_fine_tunes_are_drawn_from_where_their_baseline_ended(tmp_path):
    drawn = curves(RESULTS)
    assert [x for x, *_ in drawn['upgraded']] == [4, 5] and [x for x, *_ in drawn['retrained']] == [2, 4]
    assert [x for x, *_ in drawn['control']] == [4, 5], 'from the baseline it went on from'
    assert [*curves(RESULTS[4:6])] == [*drawn], 'each arm has its colour, whichever others there are'
    assert drawn['baseline'][-1] == (4, 0.48, 0.47, 0.49)
    plots.draw_bands(drawn, tmp_path / 'x.png', ylabel='mAP', title='two seeds', xlabel='epochs')
    assert (tmp_path / 'x.png').stat().st_size > 5000


def test_the_depth_study_compares_each_depth_with_none(tmp_path):
    results = {
        0: {0: _result('control', 0, 0.50, []), 1: _result('control', 1, 0.52, [])},
        3: {0: _result('upgraded', 0, 0.53, []), 1: _result('upgraded', 1, 0.54, [])},
    }
    times = {'train_ms': {'fastest': 10.0}, 'inference_ms': {'fastest': 4.0}}
    costs = {
        'baseline': {'parameters': 100, 'flops': 50, **times},
        '3': {'parameters': 102, 'flops': 53, 'train_ms': {'fastest': 11.0}, 'inference_ms': {'fastest': 5.0}},
    }
    rows = depth_table(results, costs).splitlines()[2:]
    assert rows == [
        '| 0 | 51.00 ± 1.41 |  | 1.000 | 1.000 | 1.000 | 1.000 |',
        '| 3 | 53.50 ± 0.71 | +2.50 ± 0.71 | 1.020 | 1.060 | 1.100 | 1.250 |',
    ]
    plots.draw_depths({0: [0.5, 0.52], 3: [0.53]}, tmp_path / 'x.png', ylabel='mAP', title='2 seeds')
    assert (tmp_path / 'x.png').stat().st_size > 5000
