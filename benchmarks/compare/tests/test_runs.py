"""Two arms of the experiment through the real tools."""

import json
import re
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from mmengine.config import Config

from benchmarks.compare.recipes import with_recipe
from benchmarks.compare.runs import Experiment, read_result, run_arm, write_config
from benchmarks.compare.side_by_side import read_plan
from benchmarks.compare.throughput import steps_per_second
from mmdeform_upgrade.errors import UpgradeError
from mmdeform_upgrade.layers import upgraded_layers
from tests.conftest import ROOT, build, run_tool

OPTIONS = ('train_cfg.max_epochs=2', 'train_cfg.val_interval=1')
METRIC = 'pascal_voc/mAP'


@pytest.fixture(scope='module')
def done(tiny_config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('arms')
    out = work_dir / 'report' / 'four'
    entry = dict(
        config=str(tiny_config), work_dir=str(work_dir), metric=METRIC, epoch_ratio=0.5, options=OPTIONS, seeds=[3]
    )
    broken = {**entry, 'config': str(work_dir / 'nowhere.py'), 'work_dir': str(work_dir / 'broken')}
    plan = work_dir / 'plan.py'
    plan.write_text(f"plan = [dict(**{broken}, arms=['baseline', 'control']), dict(**{entry}, arms=['baseline'])]\n")
    side = run_tool('benchmarks/compare/run_side_by_side.py', plan, '--at-once', 2, check=False)
    (work_dir / 'side.txt').write_text(f'{side.returncode}\n{side.stdout}')
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


def test_side_by_side_runs_what_can_run_and_says_what_became_of_the_rest(done):
    experiment, *_ = done
    folder = Path(experiment.work_dir)
    text = (folder / 'side.txt').read_text()
    assert text.startswith('1\n') and text.splitlines()[-1] == '1 failed, 1 not run, 1 done'
    assert f'not run: {folder / "broken/seed3/control"}' in text
    log = (folder / 'broken/seed3/baseline.log').read_text()
    assert 'nowhere.py' in log and 'Error' in log


def test_side_by_side_tells_how_many_at_a_time_pay(done, tiny_config, tmp_path):
    plan = tmp_path / 'plan.py'
    entry = dict(
        config=str(tiny_config),
        work_dir=str(tmp_path / 'arms'),
        metric=METRIC,
        arms=['baseline'],
        seeds=[3],
        options=OPTIONS,
    )
    plan.write_text(f'plan = [{entry}]\n')
    text = run_tool(
        'benchmarks/compare/run_side_by_side.py', plan, '--try', 1, '--seconds', 300
    ).stdout  # it ends before that
    assert re.search(r'^1 at a time: \d+\.\d\d steps a second$', text, re.M)
    assert not (tmp_path / 'arms').exists(), "the plan's own runs are not touched"
    with pytest.raises(UpgradeError, match='2 runs at a time cannot be tried: the plan has 1 that need no other'):
        steps_per_second(read_plan(str(plan)), [1, 2], 1)


def test_a_plan_puts_shared_runs_once_and_recipes_after_their_baseline(tmp_path):
    recipes = tmp_path / 'recipes.py'
    recipes.write_text('recipes = dict(paper=dict(), slow=dict(lr_mult=0.1), last=dict(targets="last:1"))\n')
    plan = tmp_path / 'plan.py'
    plan.write_text(
        "main = dict(config='a.py', work_dir='w', metric='mIoU')\n"
        f'tuned = dict(**main, seeds=[0, 1], recipes={str(recipes)!r})\n'
        "plan = [dict(**main, seeds=[0, 1]), dict(**tuned, only=['last']), tuned]\n"
    )
    assert [str(job.place) for job in read_plan(str(plan))] == [
        f'w/seed{seed}/{arm}' for seed in (0, 1) for arm in ('baseline', 'retrained', 'upgraded', 'control')
    ] + [f'w/seed{seed}/upgraded-{name}' for name in ('last', 'slow') for seed in (0, 1)]


@pytest.mark.parametrize(
    'text,message',
    [
        ('other = 1', r'expected plan = \[dict\(config='),
        ("plan = [dict(config='a.py', work_dir='w', metric='mIoU', epochs=3)]", "'epochs'; an entry takes seeds, arms"),
        ("plan = [dict(config='a.py')]", "'work_dir'.*; an entry takes seeds, arms"),
    ],
)
def test_a_plan_that_says_something_else_is_refused(tmp_path, text, message):
    plan = tmp_path / 'plan.py'
    plan.write_text(text + '\n')
    with pytest.raises(UpgradeError, match=message):
        read_plan(str(plan))


def test_the_plan_of_the_page_can_be_read(monkeypatch):
    monkeypatch.chdir(ROOT)
    jobs = read_plan('benchmarks/compare/composite_plan.py')
    assert all(Path(job.experiment.config).is_file() for job in jobs) and len(jobs) == len({job.place for job in jobs})


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


def test_recipes_are_reported_beside_what_was_trained(done, tiny_config, tmp_path):
    experiment, *_ = done
    work_dir, recipes, out = tmp_path / 'arms', tmp_path / 'recipes.py', tmp_path / 'out'
    shutil.copytree(experiment.work_dir, work_dir)
    (work_dir / 'seed3' / 'upgraded').rename(work_dir / 'seed3' / 'upgraded-half')
    recipes.write_text('recipes = dict(low=dict(epoch_ratio=0.5, lr_mult=0.1), half=dict(epoch_ratio=0.5))\n')
    command = [
        'benchmarks/compare/try_recipes.py',
        tiny_config,
        recipes,
        '--metric',
        METRIC,
        '--work-dir',
        work_dir,
        '--seeds',
        3,
        '--options',
        *OPTIONS,
        '--summary-only',
        '--out',
        out,
        '--reference',
    ]
    assert '--reference low has no result yet; there are those of half' in run_tool(*command, 'low', check=False).stderr
    text = run_tool(*command, 'half').stdout
    assert re.search(r'^\| half \| 1 epochs \| 3 \| \d+\.\d\d \|', text, re.M) and '| low |' not in text
    assert '| minus half |' in text
    assert out.with_suffix('.md').read_text() == text.removesuffix('\n')
    assert list(json.loads(out.with_suffix('.json').read_text())['runs']) == ['half']


def test_a_recipe_that_changes_nothing_is_the_experiments_own_fine_tune(done):
    experiment, *_ = done
    assert read_result(with_recipe(experiment, 'paper', {}), 3, 'upgraded') == read_result(experiment, 3, 'upgraded')
