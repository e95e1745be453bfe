"""What belongs to the run of the baseline stays with it: folders, outputs, tracked runs."""

from mmengine.config import Config

from mmdeform_upgrade import upgrade_config
from mmdeform_upgrade.config import control_changes, upgrade_changes
from mmdeform_upgrade.config.own_run import describe_outputs, own_run
from mmdeform_upgrade.config.settings import changed

from ..conftest import ROOT

BASELINE = ROOT / 'configs/ssd/ssd512_r50_240e_voc0712.py'


def test_what_belongs_to_the_baselines_run_does_not_come_along():
    cfg = Config.fromfile(BASELINE)
    cfg.merge_from_dict(
        dict(work_dir='work_dirs/baseline', resume=True, launcher='slurm', experiment_name='baseline_1')
    )
    for changes in (
        upgrade_changes(cfg, load_from='x.pth', work_dir='work_dirs/up'),
        control_changes(cfg, load_from='x.pth', work_dir='work_dirs/up'),
    ):
        own = {key: changes[key] for key in ('work_dir', 'resume', 'launcher', 'experiment_name', 'load_from')}
        expected = dict(work_dir='work_dirs/up', resume=False, launcher='none', experiment_name=None, load_from='x.pth')
        assert own == expected
    assert upgrade_config(cfg, load_from='x.pth').work_dir == 'work_dirs/baseline-upgrade'
    assert 'work_dir' not in upgrade_changes(Config.fromfile(BASELINE), load_from='x.pth')


def test_what_the_baseline_wrote_is_not_written_by_its_upgrade(tmp_path):
    base = tmp_path / 'work_dirs' / 'base'
    base.mkdir(parents=True)
    (base / 'teacher.pth').touch()
    (base / 'pred.pkl').touch()
    cfg = Config.fromfile(BASELINE)
    cfg.work_dir = str(base)
    cfg.val_evaluator = dict(type='CocoMetric', ann_file='data/val.json', outfile_prefix=f'{base}/results/val')
    cfg.test_evaluator = [dict(cfg.val_evaluator), dict(type='DumpResults', out_file_path=f'{base}/pred.pkl')]
    cfg.default_hooks.checkpoint.update(out_dir=f'{base}/', interval=20)
    cfg.default_hooks.logger.out_dir = f'{base}-logs'  # MMEngine adds the name of the run
    cfg.custom_hooks = [
        dict(type='Teacher', checkpoint=f'{base}/teacher.pth', log_file=f'{base}/teacher.log', name='base/teacher'),
        dict(type='ProfilerHook', on_trace_ready=dict(type='tb_trace', dir_name=f'{base}/trace')),
    ]
    cfg.vis_backends = [dict(type='LocalVisBackend', save_dir='/elsewhere/vis'), dict(type='WandbVisBackend')]
    for change in (upgrade_changes, control_changes):
        changes = change(cfg, load_from=f'{base}/epoch_3.pth', work_dir='work_dirs/up')
        merged = changed(cfg, changes)
        assert merged.val_evaluator == dict(cfg.val_evaluator, outfile_prefix='work_dirs/up/results/val')
        assert [metric.get('outfile_prefix', metric.get('out_file_path')) for metric in merged.test_evaluator] == [
            'work_dirs/up/results/val',
            'work_dirs/up/pred.pkl',
        ]
        assert merged.default_hooks.checkpoint.out_dir == 'work_dirs/up'
        assert merged.default_hooks.checkpoint.interval == 5  # shortened, as the schedule is
        assert merged.default_hooks.logger.out_dir == f'{base}-logs'
        assert merged.custom_hooks[0] == dict(cfg.custom_hooks[0], log_file='work_dirs/up/teacher.log')
        assert merged.custom_hooks[1].on_trace_ready.dir_name == 'work_dirs/up/trace'
        assert merged.vis_backends[0].save_dir == 'work_dirs/up/vis'
        assert 'visualizer' not in changes
    said = describe_outputs(cfg, merged).splitlines()
    assert f'output: test_evaluator.1.out_file_path {base}/pred.pkl -> work_dirs/up/pred.pkl' in said
    assert len(said) == 8 and not said[0]


def test_data_beside_the_checkpoint_are_no_output_of_its_run(tmp_path):
    masks = tmp_path / 'coco' / 'panoptic_val2017'
    masks.mkdir(parents=True)
    cfg = Config.fromfile(BASELINE)
    cfg.val_evaluator = dict(type='CocoPanopticMetric', seg_prefix=f'{masks}/', outfile_prefix='work_dirs/base/val')
    changes = upgrade_changes(cfg, load_from=str(tmp_path / 'baseline.pth'), work_dir='work_dirs/up')
    assert changes['val_evaluator'] == dict(cfg.val_evaluator, outfile_prefix='work_dirs/up/val')


def test_a_tracked_run_is_continued_by_no_other():
    cfg = Config.fromfile(BASELINE)
    wandb = dict(type='WandbVisBackend', init_kwargs=dict(project='p', id='abc', resume='must', dir='wandb'))
    aim = dict(type='AimVisBackend', init_kwargs=dict(repo='/aim', run_hash='0f'))
    cfg.merge_from_dict(dict(vis_backends=(wandb, aim), visualizer=dict(vis_backends=[wandb])))
    for change in (upgrade_changes, control_changes):
        merged = changed(cfg, change(cfg, load_from='x.pth', work_dir='work_dirs/up'))
        for first in (merged.vis_backends[0], merged.visualizer.vis_backends[0]):
            assert first.init_kwargs == dict(project='p', id=None, resume=None, dir='work_dirs/up/wandb')
        assert merged.vis_backends[1].init_kwargs == dict(repo='/aim', run_hash=None)
    assert 'output: vis_backends.1.init_kwargs.run_hash 0f -> None' in describe_outputs(cfg, merged).splitlines()


def test_outputs_are_told_from_words_in_the_folder_of_the_baseline_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(BASELINE)
    cfg.work_dir = str(tmp_path)
    assert not {'default_hooks', 'visualizer'} & set(own_run(cfg.to_dict(), 'up', 'epoch_3.pth'))
    changes = upgrade_changes(cfg, load_from='epoch_3.pth')
    assert changed(cfg, changes).visualizer == cfg.visualizer and changes['work_dir'] == f'{tmp_path}-upgrade'
