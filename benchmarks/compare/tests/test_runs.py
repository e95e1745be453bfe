"""Two arms of the experiment through the real tools."""

import json
import re
from dataclasses import replace
from importlib.metadata import version

import pytest
from mmengine.config import Config

from benchmarks.compare.runs import Experiment, read_result, run_arm, write_config
from mmdeform_upgrade.errors import UpgradeError
from mmdeform_upgrade.layers import upgraded_layers
from tests.conftest import build, run_tool

OPTIONS = ('train_cfg.max_epochs=2', 'train_cfg.val_interval=1')
METRIC = 'pascal_voc/mAP'


@pytest.fixture(scope='module')
def done(tiny_config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('arms')
    out = work_dir / 'report' / 'four'
    text = run_tool(
        'benchmarks/compare/four_arms.py',
        tiny_config,
        '--metric',
        METRIC,
        '--work-dir',
        work_dir,
        '--seeds',
        3,
        '--arms',
        'upgraded',
        'baseline',
        '--repeats',
        2,
        '--epoch-ratio',
        0.5,
        '--options',
        *OPTIONS,
        '--out',
        out,
    ).stdout
    experiment = Experiment(str(tiny_config), str(work_dir), METRIC, epoch_ratio=0.5, options=OPTIONS)
    return experiment, out, text


def test_every_arm_is_trained_tested_and_reported(done):
    _, out, text = done
    record = json.loads(out.with_suffix('.json').read_text())
    runs = {run['arm'] + str(run['settings'].get('repeat', '')): run for run in record['runs']}
    assert [machine['versions']['torch'] for machine in record['machines']] == [version('torch')]
    assert list(runs) == ['baseline', 'upgraded', 'upgraded1']
    assert runs['upgraded']['checkpoint_sha256'] != runs['upgraded1']['checkpoint_sha256'], 'other batches'
    assert [runs[arm]['length'] for arm in ('baseline', 'upgraded')] == [2, 1]
    assert [step for step, _ in runs['upgraded']['curve']] == [0, 1], 'scored before the first step, too'
    assert all(0 <= run['score'] <= 1 and run['train_seconds'] > 0 for run in runs.values())
    assert '| upgraded | 2 + 1 epochs | 3 |' in text and '- upgraded minus baseline' in text
    assert 'Means of 2 fine-tunes of each baseline' in text
    assert re.search(r'^\| upgraded \| .* \| ± \d+\.\d\d \|', text, re.M)
    assert out.with_suffix('.md').is_file() and out.with_suffix('.png').is_file()


def test_every_run_has_its_seed(done):
    experiment, *_ = done
    for arm in ('baseline', 'upgraded'):
        assert Config.fromfile(write_config(experiment, 3, 'baseline').with_name(f'{arm}.py')).randomness.seed == 3
    again = Config.fromfile(write_config(replace(experiment, repeat=2), 3, 'control'))
    assert again.randomness.seed == 2003 and again.load_from.endswith('baseline/epoch_2.pth')


def test_a_finished_run_is_not_repeated(done):
    experiment, *_ = done
    path = write_config(experiment, 3, 'baseline').parent / 'upgraded' / 'result.json'
    before = path.stat().st_mtime_ns
    assert run_arm(experiment, 3, 'upgraded') == read_result(experiment, 3, 'upgraded')
    assert path.stat().st_mtime_ns == before


def test_a_run_with_other_settings_is_refused(done):
    experiment, *_ = done
    other = Experiment(**{**vars(experiment), 'targets': 'last:1'})
    with pytest.raises(UpgradeError, match=r'made with other settings \(targets\): name another work directory'):
        run_arm(other, 3, 'upgraded')


def test_the_retrained_arm_has_the_schedule_of_the_baseline_and_the_layers_of_the_upgrade(done):
    experiment, *_ = done
    cfg = Config.fromfile(write_config(experiment, 3, 'retrained'))
    upgraded = Config.fromfile(write_config(experiment, 3, 'baseline').with_name('upgraded.py'))
    assert cfg.train_cfg.max_epochs == 2 and cfg.get('load_from') is None and not cfg.get('custom_hooks')
    assert list(upgraded_layers(build(cfg))) == list(upgraded_layers(build(upgraded)))


def test_variants_share_the_baseline_and_have_settings_of_their_own(done):
    experiment, *_ = done
    other = Experiment(
        **{
            **vars(experiment),
            'targets': 'last:1',
            'variant': 'one',
            'tune_options': ['optim_wrapper.optimizer.lr=0.5'],
        }
    )
    assert read_result(other, 3, 'baseline') == read_result(experiment, 3, 'baseline')
    assert read_result(other, 3, 'upgraded') is None
    path = write_config(other, 3, 'upgraded')
    cfg = Config.fromfile(path)
    assert path.name == 'upgraded-one.py' and cfg.optim_wrapper.optimizer.lr == 0.5 and cfg.train_cfg.max_epochs == 1
    assert len(upgraded_layers(build(cfg))) == 1


def test_the_depth_study_trains_and_measures(done, tiny_config, tmp_path):
    experiment, *_ = done
    out = tmp_path / 'depth'
    text = run_tool(
        'benchmarks/compare/depth_study.py',
        tiny_config,
        '--metric',
        METRIC,
        '--work-dir',
        experiment.work_dir,
        '--seeds',
        3,
        '--depths',
        1,
        '--epoch-ratio',
        0.5,
        '--options',
        *OPTIONS,
        '--size',
        96,
        '--repetitions',
        1,
        '--threads',
        1,
        '--out',
        out,
    ).stdout
    assert re.search(r'^\| 1 \| \d+\.\d\d \|', text, re.M)
    assert out.with_suffix('.png').is_file() and out.with_suffix('.md').is_file()


def test_an_arm_that_needs_the_baseline_says_so(done):
    experiment, *_ = done
    with pytest.raises(UpgradeError, match='control starts from the baseline, which has no result yet'):
        run_arm(experiment, 4, 'control')


def test_the_command_of_a_cluster_trains(done):
    experiment, *_ = done
    failing = Experiment(**{**vars(experiment), 'train_command': 'false {config} {work_dir}'})
    with pytest.raises(UpgradeError, match=r'seed 5: baseline: false .*seed5/baseline\.py .* ended with status 1'):
        run_arm(failing, 5, 'baseline')
