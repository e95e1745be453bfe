# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Train a detector or a segmentor: a baseline, or the upgrade of one."""

from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmdeform_upgrade import launch
from mmdeform_upgrade.preflight import check_before_training


def main(argv=None):
    parser = launch.parser(__doc__)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from a checkpoint; without a path, from the latest in the work directory',
    )
    args = parser.parse_args(argv)
    cfg = launch.load_config(args)
    if args.amp:
        launch.set_amp(cfg)
    if args.auto_scale_lr:
        launch.set_auto_scale_lr(cfg)
    launch.set_resume(cfg, args.resume)
    check_before_training(cfg)
    launch.set_safe_reader(cfg)
    with launch.own_work_dir(cfg):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        runner.train()


if __name__ == '__main__':
    launch.run(main)
