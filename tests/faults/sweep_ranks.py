"""One of two processes dies or stops: how long until the other ends, and with what?

With gloo on CPUs, under torchrun and without it, and env_cfg.dist_cfg.timeout as given.
"""

import os
import re
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.common import arguments, report, start
from tests.faults.tiny import save_tiny_baseline, tiny_config

CASES = {  # under torchrun, signal for rank 1
    'killed under torchrun': (True, signal.SIGKILL),
    'killed': (False, signal.SIGKILL),
    'stopped': (False, signal.SIGSTOP),
}


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def launch(config, work_dir, log, torchrun):
    """The processes to wait for."""
    if torchrun:
        launcher = ['-m', 'torch.distributed.run', f'--master-port={free_port()}', '--nproc_per_node=2']
        return [start(config, work_dir, '--launcher', 'pytorch', log=log, launcher=launcher)]
    port = free_port()
    return [
        start(
            config,
            work_dir,
            '--launcher',
            'pytorch',
            log=log.with_suffix(f'.{rank}'),
            env=dict(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)
            ),
        )
        for rank in (0, 1)
    ]


def pid_of_rank_1(work_dir):
    """As its hook wrote it, in the third epoch."""
    path = work_dir / 'rank_1'
    while not (path.is_file() and path.read_text()):
        time.sleep(0.02)
    return int(path.read_text())


def measure(config, folder, name, torchrun, number, limit):
    work_dir, log = folder / name.replace(' ', '_'), folder / f'{name.replace(" ", "_")}.log'
    work_dir.mkdir()
    processes = launch(config, work_dir, log, torchrun)
    victim = pid_of_rank_1(work_dir)
    os.kill(victim, number)
    begun = time.monotonic()
    status = processes[0].wait(timeout=limit + 120)
    seconds = round(time.monotonic() - begun, 1)
    if number == signal.SIGSTOP:
        os.kill(victim, signal.SIGKILL)
    for process in processes:
        process.wait(timeout=60)
    text = ''.join(path.read_text(errors='replace') for path in folder.glob(f'{log.stem}.*') if path.is_file())
    errors = re.findall(r'^(?:\[rank\d\]: )?(\S*(?:RuntimeError|DistBackendError|ChildFailedError).*)', text, re.M)
    if status == 0 or not errors:
        sys.exit(f'{name}: status {status}, {text[-2000:]}')
    said = re.sub(r'\[/\S*(/gloo/\S+)\]', r'[\1]', re.sub(r'(?<=\]):\d+\b', ':PORT', errors[0]))
    return dict(status=status, seconds=seconds, said=said[:200])


def main():
    args = arguments(__doc__, timeout=20)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        baseline = save_tiny_baseline(folder / 'baseline.pth')
        cfg = tiny_config(folder / 'unused', baseline, **{'train_cfg.max_epochs': 999})
        cfg.update(
            env_cfg=dict(dist_cfg=dict(backend='gloo', timeout=args.timeout)),
            model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None),
        )
        cfg.custom_hooks.append(dict(type='SignRank'))
        cfg.dump(folder / 'config.py')
        figures = {
            name: measure(folder / 'config.py', folder, name, *case, args.timeout) for name, case in CASES.items()
        }
    report(begun, dict(timeout=args.timeout, **figures))


if __name__ == '__main__':
    main()
