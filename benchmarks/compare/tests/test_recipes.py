"""Recipes of a fine-tune: reading, running, choosing."""

from pathlib import Path

import pytest
from mmengine.config import Config

from benchmarks.compare import Experiment, Result
from benchmarks.compare.recipes import chosen, held_out_table, read_recipes, validation_table, with_recipe
from benchmarks.compare.report import summarise
from benchmarks.compare.runs import write_config
from mmdeform_upgrade.errors import UpgradeError
from tests.conftest import ROOT


def _result(seed, score, *curve, length=2, metric='pascal_voc/mAP'):
    return Result(
        'upgraded', seed, score, list(curve), length, 'epochs', 60.0, 'epoch_2.pth', '0' * 64, {'metric': metric}
    )


FOUND = {
    'paper': {
        0: _result(0, 0.50, (0, 0.40), (2, 0.50)),
        1: _result(1, 0.52, (0, 0.42), (2, 0.51)),
        2: _result(2, 0.51, (0, 0.41), (2, 0.52)),
    },
    'low': {
        0: _result(0, 0.55, (0, 0.40), (1, 0.53), (2, 0.54)),
        1: _result(1, 0.50, (0, 0.42), (1, 0.50), (2, 0.52)),
        2: _result(2, 0.51, (0, 0.41), (1, 0.52), (2, 0.53)),
    },
    'once': {0: _result(0, 0.70, (0, 0.40), (1, 0.90), length=1)},
}
RETRAINED = {0: _result(0, 0.56, (12, 0.53)), 1: _result(1, 0.54, (12, 0.53))}


def test_recipes_are_ranked_by_their_last_validation_score():
    rows = validation_table(FOUND, RETRAINED).splitlines()[2:]
    assert rows == [
        '| once | 1 epochs | 0 | 90.00 | +40.00 | +37.00 | 1 |',
        '| low | 2 epochs | 0, 1, 2 | 53.00 ± 1.00 | +2.00 ± 1.73 | +0.00 ± 1.41 | 1, not |',
        '| paper | 2 epochs | 0, 1, 2 | 51.00 ± 1.00 |  | -2.50 ± 0.71 | not, not |',
    ]


def test_the_choice_is_made_by_validation_and_needs_three_seeds():
    assert list(chosen(FOUND)) == ['paper', 'low']
    assert list(chosen({'paper': FOUND['low'], 'other': FOUND['paper']})) == ['paper'], 'the reference is the best'
    table = held_out_table({name: FOUND[name] for name in chosen(FOUND)}, {'retrained': RETRAINED})
    assert '| low | 2 epochs | 0, 1, 2 | 52.00 ± 2.65 | -2.50 ± 2.12 |' in table and 'once' not in table


def test_percentages_stay_percentages():
    results = [
        Result('baseline', 0, 29.82, [(400, 28.5)], 400, 'iters', 60.0, 'iter_400.pth', '0' * 64, {'metric': 'mIoU'})
    ]
    assert '| baseline | 400 iters | 0 | 29.82 | 1.0 |' in summarise(results)


def test_a_recipe_reaches_the_config_and_the_controls_share_what_concerns_them(tmp_path):
    """On the composite experiment's config and recipes, as far as no baseline is needed."""
    recipes = read_recipes(str(ROOT / 'benchmarks/compare/composite_recipes.py'))
    assert next(iter(recipes)) == 'paper' and recipes['paper'] == {}
    plain = Experiment(
        str(ROOT / 'benchmarks/compare/configs/ssd256_r50_12e_cutouts.py'), str(tmp_path), 'pascal_voc/mAP'
    )
    assert with_recipe(plain, 'paper', {}).settings('upgraded') == plain.settings('upgraded')
    made = {}
    assert all(recipes[f'rate_x03_{name}'] == {**recipes[name], 'lr_mult': 0.3} for name in ('averaged', 'last6'))
    for name in (name for name in recipes if not name.startswith('rate_x03_')):  # those are the others once more
        experiment = with_recipe(plain, name, recipes[name])
        _pretend_a_baseline(experiment)
        made[name] = Config.fromfile(write_config(experiment, 0, 'upgraded'))
        Config.fromfile(write_config(experiment, 0, 'control'))
        assert experiment.settings('upgraded') == plain.settings('upgraded') or name != 'paper'
    assert made['rate_x03'].optim_wrapper.optimizer.lr == pytest.approx(0.0012)
    assert made['offsets_x10'].optim_wrapper.paramwise_cfg.custom_keys.conv_offset.lr_mult == 10
    assert [hook.type for hook in made['averaged'].custom_hooks] == [
        'BFloat16Hook',
        'ExactResumeHook',
        'DeformUpgradeHook',
        'EMAHook',
    ]
    assert made['decays_late'].param_scheduler[1].milestones == [135, 143]
    assert made['batch_norm_trained'].model.backbone.norm_eval is False
    assert [made[name].train_cfg.max_epochs for name in ('paper', 'sixth', 'twelfth')] == [3, 2, 1]
    assert made['last6'].model.backbone.targets == 'last:6'


def _pretend_a_baseline(experiment):
    from dataclasses import asdict

    from mmengine.fileio import dump

    folder = Path(experiment.work_dir) / 'seed0' / 'baseline'
    folder.mkdir(parents=True, exist_ok=True)
    dump(
        {**asdict(_result(0, 0.5, (12, 0.5), length=12)), 'settings': experiment.settings('baseline')},
        str(folder / 'result.json'),
    )


@pytest.mark.parametrize(
    'text,only,message',
    [
        ('recipes = dict()', [], r'expected recipes = dict\(NAME=dict\(\.\.\.\)'),
        ('other = 1', [], 'expected recipes = dict'),
        (
            'recipes = dict(paper=dict(), a=dict(learning_rate=1))',
            [],
            "recipe 'a' has learning_rate; known are targets",
        ),
        ('recipes = dict(paper=dict())', ['paper', 'b'], 'has no recipe b; it has paper'),
    ],
)
def test_a_file_of_recipes_that_says_something_else_is_refused(tmp_path, text, only, message):
    path = tmp_path / 'recipes.py'
    path.write_text(text + '\n')
    with pytest.raises(UpgradeError, match=message):
        read_recipes(str(path), only)
