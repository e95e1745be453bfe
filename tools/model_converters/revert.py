# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Turn upgraded layers whose offsets do nothing back into plain convolutions, and say what that costs."""

import argparse
from pathlib import Path

from mmengine.runner import Runner

from mmdeform_upgrade.analysis.look import predict
from mmdeform_upgrade.checkpoint import clean_state_dict, refuse_delta, remap_state_dict
from mmdeform_upgrade.config import read_config
from mmdeform_upgrade.config.own_run import own_run
from mmdeform_upgrade.config.settings import settings_of
from mmdeform_upgrade.config.text import whole_text
from mmdeform_upgrade.errors import ConfigError
from mmdeform_upgrade.layers import upgraded_layers
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.mm.preflight import build_network
from mmdeform_upgrade.readers import read_checkpoint
from mmdeform_upgrade.release.contents import plain_meta, refuse_existing, write_checkpoint
from mmdeform_upgrade.release.revert import judge, output_difference, reverted_checkpoint, reverted_config, validate

ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp')


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help="the upgrade's config")
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('out', help='checkpoint to write; its config is written beside it, ending in .py')
    parser.add_argument(
        '--threshold',
        type=float,
        metavar='PX',
        help='also revert layers with 95 %% of their offsets shorter than this (pixels of their input)',
    )
    parser.add_argument('--images', type=Path, metavar='DIR', help="pictures (default: the config's validation set)")
    parser.add_argument('--num', type=int, default=16, help='pictures or batches to look at (default: 16)')
    parser.add_argument('--validate', action='store_true', help='validate before and after, before anything is written')
    parser.add_argument('--force', action='store_true', help='overwrite OUT and its config')
    return parser.parse_args(argv)


def check(args):
    if not args.out.endswith('.pth'):
        raise ConfigError(f'{args.out!r}: expected a name that ends in .pth')
    if args.threshold is not None and not args.threshold > 0:
        raise ConfigError(f'--threshold {args.threshold}: expected a length in pixels, more than 0')
    if args.images and not args.images.is_dir():
        raise ConfigError(f'--images {str(args.images)!r}: there is no such folder')
    refuse_existing([args.out, args.out[:-4] + '.py'], args.force, [args.config, args.checkpoint])


def data(model, cfg, args):
    """Calls that each put some data through the network."""
    if args.images:
        pictures = [path for path in sorted(args.images.iterdir()) if path.suffix.lower() in ENDINGS][: args.num]
        if not pictures:
            raise ConfigError(f'--images {str(args.images)!r} holds no pictures ({", ".join(ENDINGS)})')
        return [lambda path=path: predict(model, str(path)) for path in pictures]
    batches = zip(range(args.num), Runner.build_dataloader(cfg.val_dataloader, seed=0), strict=False)
    return [lambda batch=batch: model.test_step(batch) for _, batch in batches]


def main(argv=None):
    args = parse_args(argv)
    check(args)
    cfg = read_config(args.config)
    if args.validate:
        command_line.check_loop(cfg, 'val')
    if not (args.images or cfg.get('val_dataloader')):
        raise ConfigError('the config has no val_dataloader: give pictures to look at with --images')
    checkpoint = read_checkpoint(args.checkpoint)
    refuse_delta(checkpoint)
    model = build_network(cfg)
    model.eval()
    checkpoint['state_dict'] = remap_state_dict(clean_state_dict(checkpoint['state_dict']), model.state_dict())
    model.load_state_dict(checkpoint['state_dict'])
    model.cfg = cfg
    runs = data(model, cfg, args)
    verdicts = judge(model, args.threshold, runs)
    print(*verdicts, sep='\n')
    gone = [verdict.name for verdict in verdicts if verdict.revert]
    if not gone:
        print('every layer is in use: nothing was written')
        return
    difference = output_difference(model, gone, runs)
    print(
        f'{len(gone)} of {len(upgraded_layers(model))} layers go back; '
        + (
            'none of them ran'
            if difference is None
            else f'together they change the output by {difference:.3g} (relative)'
        )
    )
    result = reverted_checkpoint(checkpoint, model, verdicts)
    new = reverted_config(cfg, model, verdicts, result['state_dict'])
    if args.validate:
        for title, *network in (('before', cfg, checkpoint['state_dict']), ('after', new, result['state_dict'])):
            scores = validate(*network, title)
            print(f'{title}: ' + ', '.join(f'{key} {value:.4f}' for key, value in scores.items()))
    new.update(own_run(settings_of(new), f'work_dirs/{Path(args.out).stem}'))
    new.load_from = args.out
    result['meta']['cfg'] = new.pretty_text
    write_checkpoint(args.out, result['state_dict'], plain_meta(result['meta']))
    Path(args.out[:-4] + '.py').write_text(whole_text(new), encoding='utf8')
    print(f'written: {args.out}\nwritten: {args.out[:-4]}.py')


if __name__ == '__main__':
    command_line.run(main)
