"""The comparison after a change of camera: its arms start from the baseline, and its runs are kept and repeated."""

import json
import math
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from benchmarks.camera import arms, foretell, networks, plans, runs, tables, testbeds, training
from benchmarks.camera.__main__ import main
from benchmarks.camera.references import ComputedOffsets, Rectified
from benchmarks.camera.runs import Lab, Run
from benchmarks.camera.testbeds import Geometry, Pictures
from benchmarks.camera.training import Recipe

FEW = {'train': 12, 'val': 8, 'test': 8}
TINY = replace(testbeds.TESTBEDS['shapes'], home=(48, 48), target=(64, 64), pictures=FEW)
BASELINE = replace(plans.baseline('shapes', 'r18w8s2', (0,)), recipe=Recipe(4, 2e-3))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A baseline and the pictures that it needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(testbeds.TESTBEDS, 'shapes', TINY)
        lab = Lab(tmp_path_factory.mktemp('lab'))
        lab.run([BASELINE])
        for split in testbeds.SPLITS:
            lab.data('shapes', 'fisheye', split)
    return lab.out


@pytest.fixture
def lab(made, tmp_path, monkeypatch):
    monkeypatch.setitem(testbeds.TESTBEDS, 'shapes', TINY)
    monkeypatch.setitem(runs.BASELINE_STEPS, 'shapes', 4)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Lab(tmp_path)


def an_arm(name, steps=3):
    return Run('shapes', 'r18w8s2', name, 'fisheye', Recipe(steps, 1e-3), (0,))


@pytest.mark.parametrize('arm', [arm for arm in arms.ARMS if arm != 'dilated'])
def test_an_arm_starts_from_what_the_baseline_computes(lab, arm):
    baseline = lab._network(an_arm('untouched'), 0).eval()
    pictures = lab.data('shapes', 'fisheye', 'val').pictures
    assert torch.equal(lab._network(an_arm(arm), 0).eval()(pictures), baseline(pictures))


def test_what_does_not_train_stays_to_the_bit(lab):
    for arm in ('offsets', 'bn'):
        model = lab._network(an_arm(arm), 0)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        data = lab.data('shapes', 'fisheye', 'train')
        job = training.Job(model, arms.groups(model), data, Recipe(3, 1e-2), 0)
        training.train([job], training.segmentation_loss)
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        if arm == 'offsets':
            assert changed and all('conv_offset' in name for name in changed)
        else:
            norms = {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
            assert changed and all(name.rpartition('.')[0] in norms or name.endswith('bias') for name in changed)


def test_a_run_is_kept_and_neither_repeated_nor_different_when_it_is(lab, tmp_path):
    run = an_arm('upgraded')
    lab.run([run])
    first = lab.rows[run.key(0)]
    assert first['test'] is not None and first['offsets'] and first['torch'] == torch.__version__
    lab.run([run])
    assert len(lab.file.read_text().splitlines()) == 2
    again = Lab(tmp_path)
    again.rows.pop(run.key(0))
    again.run([run])
    assert {k: v for k, v in again.rows[run.key(0)].items() if k != 'seconds'} == {
        k: v for k, v in first.items() if k != 'seconds'
    }


def test_the_test_pictures_are_not_read_for_a_selection(lab):
    lab.run([replace(BASELINE, seeds=(100,))])
    row = next(row for row in lab.rows.values() if row['seed'] == 100)
    assert 'test' not in row and row['val'] >= 0


def test_references_of_the_identity_are_the_baseline(lab):
    model = lab._network(an_arm('untouched'), 0).eval()
    pictures = lab.data('shapes', 'fisheye', 'val').pictures[:2]
    with torch.no_grad():
        plain = model(pictures)
        still = Geometry('zoom', (('magnification', 1.0),))
        computed = ComputedOffsets(model, 'shapes', still, 'val')(pictures, slice(0, 2))
        rectified = Rectified(model, 'shapes', still, 'val')(pictures, slice(0, 2))
    assert torch.allclose(computed, plain, atol=1e-4)
    assert all(type(m).forward is m.forward.__func__ for m in model.backbone.modules() if isinstance(m, nn.Conv2d))
    middle = (slice(None), slice(None), slice(28, 36), slice(28, 36))
    assert torch.corrcoef(torch.stack((rectified[middle].flatten(), plain[middle].flatten())))[0, 1] > 0.8


def test_scores_are_those_of_mmseg():
    from mmseg.evaluation import IoUMetric

    labels = torch.randint(0, 4, (3, 9, 11), dtype=torch.uint8)
    labels[0, :2] = 255
    logits = torch.randn(3, 4, 9, 11)
    data = Pictures(torch.zeros(3, 3, 9, 11, dtype=torch.uint8), labels)
    ours = training.mean_iou(nn.Identity(), data, 4, predict=lambda pictures, rows: logits[rows])
    metric = IoUMetric(iou_metrics=['mIoU'])
    areas = [metric.intersect_and_union(p, t.long(), 4, 255) for p, t in zip(logits.argmax(1), labels, strict=True)]
    theirs = metric.total_area_to_metrics(*(sum(parts) for parts in zip(*areas, strict=True)), ['mIoU'])
    assert ours == pytest.approx(100 * theirs['IoU'].mean(), abs=1e-4)


def test_an_interval_is_students():
    mean, half = tables.interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert mean == 3.5 and half == pytest.approx(2.5706 * 1.8708 / math.sqrt(6), rel=1e-3)
    assert tables.difference({0: 2.0, 1: 4.0, 2: 9.0}, {0: 1.0, 1: 2.0})[::2] == (1.5, 2)


def test_kept_rows_are_what_was_run(lab, tmp_path, monkeypatch):
    monkeypatch.setitem(plans.TUNE_STEPS, 'shapes', 3)
    lab.run([an_arm('upgraded'), an_arm('control'), an_arm('bn')])
    rows = tables.load([lab.file])
    tables.keep(rows, tmp_path / 'rows.json')
    assert tables.load([tmp_path / 'rows.json']) == json.loads(json.dumps(rows))
    text = tables.arms_table(rows, 'shapes', 'r18w8s2', 'fisheye')
    assert '1 baselines' in text and 'upgraded, everything' in text


def test_every_plan_names_runs_that_exist():
    recipes = {arm: Recipe(10, 1e-3) for arm in plans.TUNED}
    for bed in testbeds.TESTBEDS:
        names = [name for name in plans.PARTS if name not in ('dose', 'reach') or bed == 'shapes']
        network = plans.NETWORKS[bed][0]
        tried = {run.key(seed): (run, seed) for run in plans.scratch_selection(bed, network) for seed in run.seeds}
        rows = {key: {'seed': seed, 'val': 1.0, 'recipe': asdict(run.recipe)} for key, (run, seed) in tried.items()}
        planned = [run for name in names for run in plans.part(name, bed, network, recipes, rows)]
        known = {*arms.ARMS, 'untouched', 'rectified', 'computed'}
        assert all(run.arm in known or run.arm.startswith('scratch') for run in planned)
        assert all(Geometry.parse(run.geometry).view((8, 8), 'val', 0) for run in planned)


def test_a_pretrained_network_has_a_plan_of_its_own(capsys):
    recipes = {arm: Recipe(10, 1e-3) for arm in plans.BOXES_TUNED}
    planned = list(plans.camera('bccd', 'ssd-r50s4', recipes))
    scratch = [run for run in planned if run.from_scratch]
    assert [(run.recipe.steps, run.recipe.lr) for run in scratch] == [(500, plans.PRETRAINED_LRS['ssd-r50s4'])]
    assert {run.targets for run in planned if run.recipe.steps and not run.from_scratch} == {'last:13'}
    assert {run.recipe.steps for run in plans.selection('bccd', 'ssd-r50s4')} == {500, 125}
    assert {run.targets for run in plans.scratch_selection('bccd', 'ssd-r50s4')} == {'last:13'}
    assert plans.tuned_with('camvid', 'r18w32s3') == 'r18w32s2'
    segmentor = list(plans.selection('camvid', 'r50s2'))
    assert {run.network for run in segmentor} == {'r50s2'} and {run.recipe.steps for run in segmentor} == {750, 187}
    assert [run.recipe.lr for run in segmentor if run.from_scratch] == [plans.PRETRAINED_LRS['r50s2']]
    with pytest.raises(SystemExit):
        main(['bccd', '--networks', 'ssd-r50s4'])
    assert '--weights' in capsys.readouterr().err


@pytest.fixture
def boxes_lab(tmp_path, monkeypatch):
    bed = replace(testbeds.TESTBEDS['shape-boxes'], home=(64, 64), target=(96, 96), pictures=FEW)
    monkeypatch.setitem(testbeds.TESTBEDS, 'shape-boxes', bed)
    monkeypatch.setitem(runs.BASELINE_STEPS, 'shape-boxes', 4)
    return Lab(tmp_path)


@pytest.mark.parametrize('network', ['fcos-r18w8s2', 'ssd-r18w8s4', 'retina-r18w8s4', 'ssd-r50w8s4'])
def test_detectors_train_from_what_the_baseline_computes(boxes_lab, network):
    lab = boxes_lab
    lab.run([plans.baseline('shape-boxes', network, (0,))])
    arm = Run('shape-boxes', network, 'upgraded', plans.GENTLE, Recipe(3, 1e-3), (0,))
    untouched = lab._network(replace(arm, arm='untouched'), 0).eval()
    pictures = lab.data('shape-boxes', plans.GENTLE, 'val').pictures
    for found, expected in zip(lab._network(arm, 0).eval()(pictures), untouched(pictures), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    lab.run([arm])
    row = lab.rows[arm.key(0)]
    assert math.isfinite(row['loss']) and row['offsets'] and set(row['test_more']) == {'ap', 'ap50', 'ap75'}
    mixed, again = Lab(lab.out, bfloat16=True), replace(arm, recipe=Recipe(2, 1e-3))
    mixed.run([again])
    assert mixed.rows[again.key(0)]['precision'] == 'bfloat16' and 'precision' not in row


def test_merged_classes_sum_the_probabilities():
    segmentor, pictures = networks.Segmentor('r18w8s2', 4).eval(), torch.randint(0, 256, (1, 3, 32, 32))
    own = segmentor(pictures).softmax(1)
    segmentor.merge((1, 0, 1, 2))
    merged = segmentor(pictures).softmax(1)
    torch.testing.assert_close(merged, torch.stack((own[:, 1], own[:, 0] + own[:, 2], own[:, 3]), 1))


def test_signals_stand_beside_the_gains(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(foretell, 'BATCHES', 12)
    lab.run([an_arm('upgraded'), an_arm('control')])
    another = dict(bed='b', network='n', name='of another lab', snr=1, z=1, weights=1, gain=2, half=0.5)
    (tmp_path / 'signal.json').write_text(json.dumps([another | dict(extent=1, sees=1, ratio=1)]))
    foretell.main(['--lab', str(tmp_path), '--out', str(tmp_path / 'signal')])
    text = (tmp_path / 'signal.md').read_text()
    gain = lab.rows[an_arm('upgraded').key(0)]['test'] - lab.rows[an_arm('control').key(0)]['test']
    assert f'| {gain:+.1f} one baseline |' in text and '| of another lab |' in text and '| +2.0 ± 0.5 |' in text
    assert (tmp_path / 'signal.png').is_file() and len(json.loads((tmp_path / 'signal.json').read_text())) == 2
    assert len((tmp_path / 'signals.jsonl').read_text().splitlines()) == 1
