# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Train a detector or a segmentor: a baseline, or the upgrade of one."""

from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.preflight import check_before_training


def main(argv=None):
    parser = command_line.parser(__doc__)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='continue from a checkpoint; without a path, from the latest in the work directory',
    )
    args = parser.parse_args(argv)
    cfg = command_line.load_config(args)
    command_line.check_loop(cfg, 'train')
    if args.amp:
        command_line.set_amp(cfg)
    if args.auto_scale_lr:
        command_line.set_auto_scale_lr(cfg)
    command_line.set_resume(cfg, args.resume)
    check_before_training(cfg)
    runner = command_line.build_runner(cfg)
    runner.train()


if __name__ == '__main__':
    command_line.run(main)
