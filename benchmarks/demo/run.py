# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""A trained segmentor or detector meets another camera: upgraded, proved, measured, fine-tuned, beside it the control.

    python -m benchmarks.demo.run --out demo_output
    python -m benchmarks.demo.run --task detection --out demo_output

All data are generated. OUT/index.html shows what was measured, OUT/demo.json has the numbers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.demo import job, report
from benchmarks.demo.progress import Progress
from benchmarks.demo.tasks import TASKS
from mmdeform_upgrade.mm import command_line


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('demo_output'), help='folder for everything')
    parser.add_argument('--task', choices=sorted(TASKS), default='segmentation', help='default: %(default)s')
    for name, default in vars(job.Sizes()).items():
        parser.add_argument(f'--{name}', type=int, default=default, help='default: %(default)s')
    args = parser.parse_args(argv)
    sizes = job.Sizes(**{name: getattr(args, name) for name in vars(job.Sizes())})
    progress = Progress(job.EXPECTED)
    try:
        demo = job.Demo(args.out.absolute(), TASKS[args.task], sizes, progress)
        results = demo.run()
        with progress.step('pictures and page'):
            report.write(demo, results)
    finally:
        progress.close()
    (args.out / 'demo.json').write_text(json.dumps(results.as_dict(), indent=1) + '\n', encoding='utf8')
    print(f'\n{report.table(results)}\n\n{report.summary(results)}\nLook at {args.out / "index.html"}.')


if __name__ == '__main__':
    command_line.run(main)
