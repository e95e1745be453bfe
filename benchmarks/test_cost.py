"""Random batches for whole networks, and the two benchmarks as a user runs them."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from torch import nn

from benchmarks.cost import random_batch, scatter_offsets_
from benchmarks.timing import race, summary
from mmdeform_upgrade import upgrade_
from mmdeform_upgrade.errors import ConfigError
from tests.conftest import build, run_tool


def test_candidates_take_turns_and_only_the_later_calls_count():
    calls = []
    times = race({name: lambda name=name: calls.append(name) for name in 'ab'}, repetitions=3, warm_up=1)
    assert calls == list('ab') * 4
    assert all(len(found) == 3 and min(found) > 0 for found in times.values())


def test_a_summary_is_of_the_sorted_times():
    found = summary([5.0, 1.0, 2.0, 4.0, 3.0])
    assert found == {'fastest': 1.0, 'lower_quartile': 2.0, 'median': 3.0, 'upper_quartile': 4.0}


def test_a_detector_trains_on_a_random_batch(tiny_config):
    model = build(Config.fromfile(tiny_config)).train()
    logged = model.train_step(random_batch(model, 96, 2), OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01)))
    assert logged['loss'] > 0 and all(torch.isfinite(value).all() for value in logged.values())


def test_no_labels_are_made_for_an_unknown_network():
    with pytest.raises(ConfigError, match='Sequential is no detector of mmdet and no segmentor of mmseg'):
        random_batch(nn.Sequential(nn.Conv2d(3, 3, 3)), 32, 1)


def test_scattered_offsets_have_the_spread_that_was_asked_for():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    upgrade_(model, 'last:2')
    images = torch.randn(2, 3, 16, 16)
    scatter_offsets_(model, 1.5, lambda: model(images))
    spreads = []
    for module in (model[0], model[2]):
        module.conv_offset.register_forward_hook(lambda _, args, output: spreads.append(float(output.detach().std())))
    model(images)
    assert spreads == pytest.approx([1.5, 1.5], rel=1e-4)


def test_the_cost_of_upgrades_stands_beside_the_baselines(tiny_config, tmp_path):
    out = tmp_path / 'cost'
    run_tool(
        'benchmarks/cost.py',
        tiny_config,
        '--targets',
        'last:1',
        'last:3',
        '--size',
        96,
        '--repetitions',
        1,
        '--threads',
        1,
        '--out',
        out,
    )
    report = json.loads(out.with_suffix('.json').read_text())
    assert list(report['results']) == ['baseline', 'last:1', 'last:3']
    assert all(row[kind]['fastest'] > 0 for row in report['results'].values() for kind in ('train_ms', 'inference_ms'))
    parameters, flops = ([row[key] for row in report['results'].values()] for key in ('parameters', 'flops'))
    assert parameters == sorted(parameters) and len(set(parameters)) == 3
    assert flops == sorted(flops) and len(set(flops)) == 3
    assert '| last:3 |' in out.with_suffix('.md').read_text()


def test_offsets_alone_stand_beside_training_everything(tiny_config, tmp_path):
    out = tmp_path / 'offsets'
    text = run_tool('benchmarks/offsets_only.py', tiny_config, '--size', 96, '--repetitions', 1, '--out', out).stdout
    (rows,) = json.loads(out.with_suffix('.json').read_text())['results'].values()
    everything, offsets = rows['all'], rows['offsets']
    assert 0 < offsets['saved'] < everything['saved'] / 2 and 0 < offsets['state'] < everything['state']
    assert offsets['file'] < everything['file'] and offsets['step_ms']['fastest'] > 0
    assert '| offsets alone |' in text


def test_the_benchmark_of_the_operator_gates_every_candidate(tmp_path):
    out = tmp_path / 'op'
    run_tool(
        'benchmarks/operator/benchmark_op.py', '--shapes', '1x16x6x7', '--repetitions', 1, '--threads', 1, '--out', out
    )
    (run,) = json.loads(out.with_suffix('.json').read_text())['runs']
    assert {'conv', 'eager'} <= set(run['results'])
    assert run['results']['eager']['error_over_conv'] <= 2
    assert out.with_suffix('.png').stat().st_size > 1000
