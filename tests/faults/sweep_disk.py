"""A disk that is full when a checkpoint is due: what the run says, what it leaves, and whether it can go on.

On a small tmpfs, which needs root: once for each number of epochs before the disk is full, with one checkpoint kept.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from mmengine.runner import find_latest_checkpoint

from mmdeform_upgrade.mm.guard import why_not_resumable
from tests.faults.common import arguments, differences, finished, report, start
from tests.faults.tiny import save_tiny_baseline, tiny_config

EPOCHS = 4


@contextmanager
def small_disk(folder):
    """8 MB mounted at ``folder``; False where that is not possible."""
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)]
    mounted = shutil.which('mount') and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield bool(mounted)
    finally:
        if mounted:
            subprocess.run(['umount', '-l', str(folder)], check=True)


def fill(disk, room):
    """Leave ``room`` bytes."""
    (disk / 'filler').write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))


def run_into_it(config, disk, epoch, room, log):
    """Fill the disk as soon as the checkpoint of ``epoch`` stands; returns the exit status and what was said last."""
    work_dir = disk / 'work'
    process = start(config, work_dir, log=log)
    while (
        process.poll() is None
        and epoch
        and find_latest_checkpoint(str(work_dir)) != str(work_dir / f'epoch_{epoch}.pth')
    ):
        time.sleep(0.0005)
    fill(disk, room)
    status = process.wait(timeout=300)
    return status, log.read_text(errors='replace').strip().splitlines()[-1]


def main():
    args = arguments(__doc__, room=200_000)
    begun, figures = time.monotonic(), {'attempts': []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        baseline = save_tiny_baseline(folder / 'baseline.pth', channels=256)
        cfg = tiny_config(
            folder / 'unused', baseline, **{'model.backbone.channels': 256, 'train_cfg.max_epochs': EPOCHS}
        )
        cfg.dump(folder / 'config.py')
        finished(start(folder / 'config.py', folder / 'whole', log=folder / 'log'), folder / 'log')
        for epoch in range(1, EPOCHS - 1):
            with small_disk(folder / f'disk{epoch}') as mounted:
                if not mounted:
                    sys.exit('skipped: no file system can be mounted here (it needs root)')
                attempt(folder / 'config.py', folder / f'disk{epoch}', epoch, folder / 'whole', args.room, figures)
    report(begun, figures)


def attempt(config, disk, epoch, whole, room, figures):
    log = disk.with_suffix('.log')
    status, said = run_into_it(config, disk, epoch, room, log)
    work_dir = disk / 'work'
    left = find_latest_checkpoint(str(work_dir))
    whole_files = [path.name for path in work_dir.glob('*.pth') if why_not_resumable(str(path)) is None]
    broken = [path.name for path in work_dir.glob('*.pth') if path.name not in whole_files]
    (disk / 'filler').unlink()
    finished(start(config, work_dir, '--resume', log=log), log)
    found = differences(work_dir / f'epoch_{EPOCHS}.pth', whole / f'epoch_{EPOCHS}.pth')
    figures['attempts'].append(
        dict(
            full_after_epoch=epoch,
            status=status,
            said=said.replace(str(disk), 'DISK'),
            kept=Path(left).name if left else None,
            broken=broken,
            differences=found,
        )
    )
    if status != 2 or not left or broken or found:
        sys.exit(f'not as it should be: {figures["attempts"][-1]}')


if __name__ == '__main__':
    main()
