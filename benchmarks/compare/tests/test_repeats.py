"""Several fine-tunes of one baseline: what is run, and what is said of it."""

from dataclasses import replace

import pytest

from benchmarks.compare import Experiment, Result
from benchmarks.compare.repeats import averaged, chance, collect, mean_of, repeats_section
from benchmarks.compare.spread import Spread

PLAIN = Experiment('a.py', 'w', 'pascal_voc/mAP')


def _result(arm, seed, score, repeat=0, last=0.5):
    settings = {'metric': PLAIN.metric, **({'repeat': repeat} if repeat else {})}
    return Result(arm, seed, score, [(0, 0.1), (1, last)], 1, 'epochs', 60.0, 'epoch_1.pth', '0' * 64, settings)


FOUND = {
    'baseline': {0: [_result('baseline', 0, 0.40)]},
    'upgraded': {
        0: [_result('upgraded', 0, 0.50), _result('upgraded', 0, 0.54, 1)],
        1: [_result('upgraded', 1, 0.60), _result('upgraded', 1, 0.62, 1), _result('upgraded', 1, 0.99, 2)],
    },
    'control': {
        0: [_result('control', 0, 0.49), _result('control', 0, 0.51, 1)],
        1: [_result('control', 1, 0.58), _result('control', 1, 0.60, 1)],
    },
}


def test_fine_tunes_are_repeated_and_trainings_are_not():
    def work(experiment, seed, arm):
        return None if (seed, experiment.repeat) == (1, 2) else _result(arm, seed, 0.5, experiment.repeat)

    found = collect({arm: (PLAIN, arm) for arm in ('baseline', 'control')}, [0, 1], 3, work)
    assert {
        arm: {seed: [run.settings.get('repeat', 0) for run in runs] for seed, runs in seeds.items()}
        for arm, seeds in found.items()
    } == {'baseline': {0: [0], 1: [0]}, 'control': {0: [0, 1, 2], 1: [0, 1]}}


def test_a_repeat_is_a_run_of_its_own_and_the_first_one_is_the_plain_run():
    assert [replace(PLAIN, repeat=repeat).name('control') for repeat in (0, 2)] == ['control', 'control-repeat2']
    varied = replace(PLAIN, variant='x', repeat=2)
    assert [varied.name(arm) for arm in ('baseline', 'retrained', 'upgraded')] == [
        'baseline',
        'retrained-x',
        'upgraded-x-repeat2',
    ]
    assert varied.settings('upgraded')['repeat'] == 2 and 'repeat' not in varied.settings('retrained')
    assert 'repeat' not in PLAIN.settings('upgraded')


def test_scores_and_curves_are_averaged():
    mean = averaged([_result('control', 3, 0.4, last=0.2), _result('control', 3, 0.6, 1, last=0.6)])
    assert (mean.score, mean.curve, mean.seed) == (0.5, [(0, 0.1), (1, pytest.approx(0.4))], 3)
    assert {seed: run.score for seed, run in mean_of(FOUND['control']).items()} == {0: 0.5, 1: pytest.approx(0.59)}


def test_chance_is_what_fine_tunes_of_one_baseline_differ_by():
    assert chance([[1.0, 3.0], [10.0, 14.0], [7.0]]) == pytest.approx(((2 + 8) / 2) ** 0.5)
    assert chance([[1.0], [2.0]]) is None and chance([]) is None


def test_the_section_pairs_fine_tunes_of_the_same_batches():
    lines = repeats_section(FOUND, 'control').splitlines()
    assert lines[1] == 'Means of up to 3 fine-tunes of each baseline, each with batches of its own; on the test split:'
    upgraded, control = lines[5:]
    pairs = [0.01, 0.03], [0.02, 0.02]  # the third fine-tune of seed 1 has no partner
    error = chance(pairs) / 4**0.5
    assert upgraded == (
        f'| upgraded | 52.00 ± 2.83 | {Spread.of([0.60, 0.62, 0.99]).text()} | '
        f'± {100 * chance([[0.5, 0.54], [0.6, 0.62, 0.99]]):.2f} | +2.00 ± {100 * error:.2f} (4) |'
    )
    assert control == '| control | 50.00 ± 1.41 | 59.00 ± 1.41 | ± 1.41 |  |'
    assert repeats_section({'upgraded': {0: FOUND['upgraded'][0][:1]}}, 'control') == ''
    assert '| upgraded | 50.00 ± 0.00 |' in repeats_section(FOUND, 'control', 'validation')
