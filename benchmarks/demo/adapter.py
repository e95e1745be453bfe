# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Score a baseline with an adapter put on it and taken off again, on the config's test split.

python -m benchmarks.demo.adapter CONFIG CHECKPOINT ADAPTER --metric mIoU --work-dir FOLDER
"""

from __future__ import annotations

import argparse
import json

from mmengine.runner import Runner

from mmdeform_upgrade import disable_adapter, load_adapter
from mmdeform_upgrade.config import read_config
from mmdeform_upgrade.mm import command_line


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ('config', 'checkpoint', 'adapter'):
        parser.add_argument(name)
    parser.add_argument('--metric', required=True, help='the score, as the evaluator names it')
    parser.add_argument('--work-dir', required=True)
    args = parser.parse_args(argv)
    cfg = read_config(args.config)
    cfg.merge_from_dict({'work_dir': args.work_dir, 'load_from': f'baseline://{args.checkpoint}'})
    runner = Runner.from_cfg(cfg)
    scores = {'without': runner.test()[args.metric]}
    load_adapter(runner.model, args.adapter)
    scores['on'] = runner.test()[args.metric]
    with disable_adapter(runner.model):
        scores['off'] = runner.test()[args.metric]
    print(json.dumps({name: float(score) for name, score in scores.items()}))


if __name__ == '__main__':
    command_line.run(main)
