"""Kill a fine-tune at random moments and resume it: does it end with the weights of the run that nobody killed?

Every attempt is a process of its own, tools/train.py --resume, and ends by SIGKILL at a random moment, some of them
while a checkpoint is being written. After each, every checkpoint under its own name has to be whole.
"""

import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from mmengine.runner import find_latest_checkpoint

from mmdeform_upgrade.mm.guard import why_not_resumable
from mmdeform_upgrade.readers import read_checkpoint
from tests.faults.common import arguments, differences, finished, report, start
from tests.faults.tiny import save_tiny_baseline, tiny_config

CHANNELS = 256
BY_ITERATION = {
    'train_cfg.by_epoch': False,
    'train_cfg.max_epochs': None,
    'train_cfg.max_iters': 160,
    'train_cfg.val_interval': 8,
    'train_dataloader.sampler.type': 'InfiniteSampler',
    'default_hooks.checkpoint.by_epoch': False,
    'default_hooks.checkpoint.interval': 3,
}


def write_configs(folder):
    """One by epochs, one by iterations; both with two data workers, momentum, a schedule, and one checkpoint kept."""
    baseline = save_tiny_baseline(folder / 'baseline.pth', channels=CHANNELS)
    common = {'train_dataloader.num_workers': 2, 'train_cfg.max_epochs': 40, 'model.backbone.channels': CHANNELS}
    found = {}
    for name, changes in (('epochs', {}), ('iterations', BY_ITERATION)):
        cfg = tiny_config(folder / 'unused', baseline, **{**common, **changes})
        found[name] = folder / f'{name}.py'
        if cfg.train_cfg.max_epochs is None:
            del cfg.train_cfg['max_epochs']
        cfg.dump(found[name])
    return found


def kill_once(config, work_dir, log, chance):
    """One attempt; returns how the process ended.

    A quarter dies while it builds, loads and scores, the others some seconds after their first step, and of those a
    half as soon as a checkpoint is being written.
    """
    before, early, writing = set(work_dir.glob('2*')), chance.random() < 0.25, chance.random() < 0.5
    process = start(config, work_dir, '--resume', log=log)
    while process.poll() is None and not (has(work_dir, process.pid) if early else has_stepped(work_dir, before)):
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 4))
    while process.poll() is None and writing and not early and not being_written(work_dir):
        time.sleep(0.0003)
    process.send_signal(signal.SIGKILL)
    return process.wait()


def has_stepped(work_dir, before):
    """Whether a run without a folder among ``before`` has logged a step."""
    return any(
        '(train)' in log.read_text(errors='replace')
        for folder in work_dir.glob('2*')
        if folder not in before
        for log in folder.glob('*.log')
    )


def has(work_dir, pid):
    try:
        return (work_dir / '.run.lock').read_text().startswith(f'process {pid} ')
    except OSError:
        return False


def being_written(work_dir):
    return any(work_dir.glob('.*.pth.*'))


def sweep(name, config, folder, kills, chance):
    whole, work_dir, log = folder / f'{name}_whole', folder / f'{name}_killed', folder / f'{name}.log'
    work_dir.mkdir()
    finished(start(config, whole, log=log), log)
    figures = dict(kills=0, while_writing=0, came_to_the_end=0, checkpoints_looked_at=0, places=[])
    while figures['kills'] < kills:
        returncode = kill_once(config, work_dir, log, chance)
        if returncode != -signal.SIGKILL:
            figures['came_to_the_end'] += 1
            if returncode:
                sys.exit(f'an attempt ended with {returncode}:\n' + log.read_text(errors='replace')[-3000:])
            shutil.rmtree(work_dir)
            work_dir.mkdir()
            continue
        figures['kills'] += 1
        figures['while_writing'] += being_written(work_dir)
        look(work_dir, figures)
    finished(start(config, work_dir, '--resume', log=log), log)
    last = [find_latest_checkpoint(path) for path in (whole, work_dir)]
    figures['passed_over'] = log.read_text(errors='replace').count('Resuming from the newest checkpoint that is whole')
    figures['differences'] = differences(*last)
    best = [read_checkpoint(path)['message_hub']['runtime_info']['best_score'] for path in last]
    if figures['differences'] or best[0] != best[1]:
        sys.exit(f'{name}: not the same: {figures["differences"]}, best scores {best}')
    return figures


def look(work_dir, figures):
    """Each file under a checkpoint's name is a whole one."""
    for path in work_dir.glob('*.pth'):
        why = why_not_resumable(str(path))
        if why is not None:
            sys.exit(f'{path} is not whole: {why}')
        figures['checkpoints_looked_at'] += 1
    last = find_latest_checkpoint(str(work_dir))
    figures['places'].append(Path(last).stem if last else None)


def main():
    args = arguments(__doc__, kills=20, seed=0)
    begun, chance = time.monotonic(), random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        configs = write_configs(Path(folder))
        figures = {name: sweep(name, config, Path(folder), args.kills, chance) for name, config in configs.items()}
    report(begun, figures)


if __name__ == '__main__':
    main()
