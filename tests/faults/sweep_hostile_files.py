"""Every hostile file through every door of the package: nothing of theirs may run, and no value of theirs may be a weight.

    python tests/faults/sweep_hostile_files.py

Some 2600 calls, about ten minutes of one core. Ends with status 1 where a door opened.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import payloads
from doors import ROOT, Doors, Let, plain_config_texts, try_door
from mmengine.config import Config


def small_config(folder):
    """A baseline's config on six generated pictures, of which one is validated: no pool of processes for mmdet's mAP."""
    data = folder / 'VOCdevkit'
    subprocess.run(
        [
            sys.executable,
            ROOT / 'benchmarks/datasets/compose_shapes.py',
            '--out',
            data,
            '--train',
            '4',
            '--val',
            '1',
            '--test',
            '1',
            '--size',
            '96',
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    cfg = Config.fromfile(ROOT / 'benchmarks/demo/configs/ssd96_r18_shapes.py')
    cfg.train_cfg.update(max_epochs=4, val_interval=4)  # a harmless file trains a baseline
    cfg.model.backbone.base_channels = 8
    cfg.model.neck.update(in_channels=(16, 32, 64), out_channels=(32,), min_channels=16)
    cfg.model.bbox_head.in_channels = (16, 32, 64, 32)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = f'{data}/'
    cfg.dump(folder / 'baseline.py')
    return folder / 'baseline.py'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cheap', action='store_true', help='only the doors that build no network')
    args = parser.parse_args()
    payloads.register_extension()
    start, wrong, tried = time.time(), [], Counter()
    with tempfile.TemporaryDirectory() as folder, plain_config_texts():
        folder = Path(folder)
        marker = folder / 'marker'
        doors = Doors(small_config(folder), folder)
        calls = doors.cheap() if args.cheap else {**doors.cheap(), **doors.costly()}
        for container in payloads.CONTAINERS:
            for name in payloads.NAMES:
                path = payloads.write(folder, container, name, marker)
                payloads.detonate(path)
                if not marker.exists():
                    wrong.append(f'{path.name} does not run even when it is loaded the usual way')
                    continue
                marker.unlink()
                for door, call in calls.items():
                    tried[door] += 1
                    try:
                        try_door(call, path, marker, payloads.is_inert(path))
                    except Let as error:
                        wrong.append(f'{door}: {error}')
            print(
                f'{container}: {sum(tried.values())} calls, {len(wrong)} wrong, {time.time() - start:.0f} s', flush=True
            )
    print(*wrong[:40], sep='\n')
    print(
        f'{len(tried)} doors, {len(payloads.CONTAINERS) * len(payloads.NAMES)} files, {sum(tried.values())} calls: '
        f'{len(wrong)} wrong'
    )
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
