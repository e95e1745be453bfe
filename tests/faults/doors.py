"""Every way by which a checkpoint file gets into the package, as calls in this process.

A door is a function of a hostile file that has to end in the package's error, with nothing loaded.
"""

import contextlib
import io
import itertools
import runpy
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner

from mmdeform_upgrade import load_baseline
from mmdeform_upgrade.config import upgrade_config
from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.files import write_safetensors
from mmdeform_upgrade.mm import command_line
from mmdeform_upgrade.release import make_delta

ROOT = Path(__file__).resolve().parents[2]
_mains, _number = {}, itertools.count()


@contextlib.contextmanager
def plain_config_texts():
    """Configs are written without yapf's layout, which takes most of the time of a runner that is refused."""
    from yapf.yapflib import yapf_api

    before = yapf_api.FormatCode
    yapf_api.FormatCode = lambda text, **kwargs: (text, True)
    try:
        yield
    finally:
        yapf_api.FormatCode = before


class Let(AssertionError):
    """A door let a file in."""


def call_tool(name, *arguments):
    """A tool in this process, as its file calls it; returns its exit status and what it printed as an error."""
    main = _mains.setdefault(name, runpy.run_path(str(ROOT / 'tools' / name))['main'])
    DefaultScope._instance_dict.clear()
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            command_line.run(main, [str(argument) for argument in arguments])
        except SystemExit as end:
            return end.code or 0, stderr.getvalue()
    return 0, stderr.getvalue()


class Doors:
    """The doors, for one small detector.

    Args:
        config: path of a baseline's config with data.
        folder: for what the doors need, and would write.
    """

    def __init__(self, config, folder):
        self.folder = Path(folder)
        cfg = Config.fromfile(config)
        cfg.log_level = 'ERROR'
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.dataset.serialize_data = False  # or each waits for the garbage collector
        self.baseline = self.folder / 'baseline.py'
        cfg.dump(self.baseline)
        self.upgraded = self.folder / 'upgraded.py'
        upgrade_config(cfg, load_from='unused.pth', targets='last:1').dump(self.upgraded)
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='unused.pth')
        self.pretrained = self.folder / 'pretrained.py'
        cfg.dump(self.pretrained)
        self.image = next(Path(cfg.train_dataloader.dataset.data_root).rglob('*.jpg'))
        self.good, self.delta = self.folder / 'good.pth', self.folder / 'delta.safetensors'
        torch.save({'state_dict': {'a': torch.ones(2)}}, self.good)
        torch.save({'state_dict': {'a': torch.zeros(2)}}, self.folder / 'changed.pth')
        make_delta(str(self.good), str(self.folder / 'changed.pth'), str(self.delta))
        write_safetensors(self.folder / 'good.safetensors', {'a': torch.ones(2)})

    def _out(self, ending):
        return self.folder / f'written{next(_number)}{ending}'

    def _options(self, *options):
        number = next(_number)
        return [
            '--work-dir',
            self.folder / f'work{number}',
            '--cfg-options',
            f'experiment_name=door{number}',
            'log_level=ERROR',
            *options,
        ]

    def cheap(self):
        """Names to calls ``(path) -> (status, message)``; each takes milliseconds."""
        return {
            'upgrade.py --inspect': lambda path: call_tool('upgrade.py', '--inspect', path),
            'import_baseline.py': lambda path: call_tool(
                'model_converters/import_baseline.py', path, self._out('.pth')
            ),
            'publish_model.py': lambda path: call_tool('model_converters/publish_model.py', path, self._out('')),
            'delta.py make, baseline': lambda path: call_tool(
                'model_converters/delta.py', 'make', path, self.good, self._out('.safetensors')
            ),
            'delta.py make, upgrade': lambda path: call_tool(
                'model_converters/delta.py', 'make', self.good, path, self._out('.safetensors')
            ),
            'delta.py apply, baseline': lambda path: call_tool(
                'model_converters/delta.py', 'apply', path, self.delta, self._out('.pth')
            ),
            'delta.py apply, delta': lambda path: call_tool(
                'model_converters/delta.py', 'apply', self.good, path, self._out('.pth')
            ),
            'load_baseline': self._python(lambda path: load_baseline(path)),
            'baseline://': self._python(lambda path: CheckpointLoader.load_checkpoint(f'baseline://{path}')),
        }

    def costly(self):
        """Doors that build a network or a runner before they read."""
        train, test = 'train.py', 'test.py'
        return {
            'upgrade.py': lambda path: call_tool('upgrade.py', self.baseline, path, '--out', self._out('.py')),
            'revert.py': lambda path: call_tool('model_converters/revert.py', self.upgraded, path, self._out('.pth')),
            'export_onnx.py': lambda path: call_tool(
                'deployment/export_onnx.py', self.upgraded, path, self._out('.onnx'), '--size', 96, 96
            ),
            'show_offsets.py': lambda path: call_tool(
                'analysis_tools/show_offsets.py', self.image, self.upgraded, path, '--out', self._out('.png')
            ),
            'train.py': lambda path: call_tool(train, self.upgraded, *self._options(f'load_from={path}')),
            'train.py --resume': lambda path: call_tool(train, self.upgraded, '--resume', path, *self._options()),
            'train.py, FlexibleRunner': lambda path: call_tool(
                train,
                self.upgraded,
                '--resume',
                path,
                *self._options('runner_type=FlexibleRunner', 'strategy.type=SingleDeviceStrategy'),
            ),
            'train.py, no hook': lambda path: call_tool(train, self.baseline, *self._options(f'load_from={path}')),
            'train.py --resume, no hook': lambda path: call_tool(
                train, self.baseline, '--resume', path, *self._options()
            ),
            'train.py, init_cfg': lambda path: call_tool(
                train, self.pretrained, *self._options(f'model.backbone.init_cfg.checkpoint={path}')
            ),
            'test.py': lambda path: call_tool(test, self.upgraded, path, *self._options()),
            'test.py, no hook': lambda path: call_tool(test, self.baseline, path, *self._options()),
            "the user's own runner": self._python(self._run),
            'init_detector': self._python(self._init_detector),
        }

    def _run(self, path):
        cfg = Config.fromfile(self.upgraded)
        number = next(_number)
        cfg.update(
            load_from=str(path),
            work_dir=str(self.folder / f'work{number}'),
            experiment_name=f'door{number}',
            log_level='ERROR',
        )
        Runner.from_cfg(cfg).train()

    def _init_detector(self, path):
        from mmdet.apis import init_detector

        init_detector(str(self.upgraded), f'baseline://{path}', device='cpu')

    @staticmethod
    def _python(function):

        def call(path):
            DefaultScope._instance_dict.clear()
            try:
                function(str(path))
            except CheckpointError as error:
                return 2, f'CheckpointError: {error}'
            return 0, ''

        return call


def try_door(call, path, marker, inert=False):
    """Put a hostile file through a door: nothing of it may run. It is refused, unless its program is ``inert``.

    Raises:
        Let: something ran, or the door ended in any other way.
    """
    status, message = call(path)
    if marker.exists():
        marker.unlink()
        raise Let(f'{path.name}: it ran')
    if inert:
        ended_well = status == 0 or (status == 2 and 'CheckpointError: ' in message)  # its weights fit no network
    else:  # the tool's own words, not those of a crash that happened to come first
        ended_well = status == 2 and message.rstrip().rpartition('CheckpointError: ')[2].startswith(str(path))
    if not ended_well:
        raise Let(f'{path.name}: status {status}: {message[-500:]}')
