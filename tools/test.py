# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Evaluate a checkpoint: a baseline, an upgraded one, or a baseline under an upgraded config."""

from pathlib import Path

from mmengine.evaluator import DumpResults

from mmdeform_upgrade.config import SCHEME
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.loading import local_path


def main(argv=None):
    parser = command_line.parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', type=command_line.pickle_file, help='pickle file for the predictions')
    parser.add_argument('--show', action='store_true', help='show predictions')
    parser.add_argument(
        '--show-dir', help="folder for pictures with predictions; mmdet's is inside the run's work directory"
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between shown pictures')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation, as set in the config')
    args = parser.parse_args(argv)
    cfg = command_line.load_config(args)
    command_line.check_loop(cfg, 'test')
    cfg.load_from, cfg.resume = SCHEME + local_path(args.checkpoint), False
    # A runner leaves its config in the work directory: a test's beside the one of the training.
    object.__setattr__(cfg, '_filename', f'{Path(args.config).stem}-test.py')
    if args.show or args.show_dir:
        command_line.set_visualization(cfg, args.show, args.show_dir, args.wait_time)
    if args.tta:
        command_line.set_tta(cfg)
    runner = command_line.build_runner(cfg)
    if args.out:
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    runner.test()


if __name__ == '__main__':
    command_line.run(main)
