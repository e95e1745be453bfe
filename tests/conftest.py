"""Shared fixtures: a tiny data set, a tiny detector's config and a checkpoint trained for one epoch."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.visualization import Visualizer

from mmdeform_upgrade.mm import mmcv_ops

from .guard import sitecustomize  # noqa: F401  refuses connections to other machines

ROOT = Path(__file__).resolve().parents[1]
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT / 'tests' / 'guard'), os.environ.get('PYTHONPATH')]))
torch.set_num_threads(1)  # a fork of a process with OpenMP's threads hangs
MMDET_CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'


# The longest files first, so that no process is left with one of them at the end (--dist loadfile keeps this order).
LONGEST = (
    'test_demo',
    'test_triton',
    'test_config_steps',
    'test_runs',
    'test_recipes',
    'test_resume',
    'test_zoo',
    'test_tools',
    'test_onnx',
    'test_tutorial',
    'test_hooks',
    'test_seg',
)


def pytest_collection_modifyitems(items):
    order = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


def pytest_runtest_setup(item):
    if item.get_closest_marker('compiled_mmcv') and find_spec('mmcv._ext').origin == mmcv_ops.__file__:
        pytest.skip('needs a compiled mmcv: make install MMCV=compiled')


def run_tool(name, *args, cwd=ROOT, env=None, check=True, timeout=300):
    """Run a tool as a user would; returns the finished process with its output as text."""
    tool, args = (
        str(ROOT / name if name.startswith('benchmarks/') else ROOT / 'tools' / name),
        [str(arg) for arg in args],
    )
    fresh = 'PYTHONPATH' in (env or {})  # what is imported is not what the server has imported
    env = {**os.environ, 'OMP_NUM_THREADS': '1', **(env or {})}
    if fresh:
        result = subprocess.run(
            [sys.executable, tool, *args], cwd=cwd, text=True, capture_output=True, timeout=timeout, env=env
        )
        return _checked(result, check)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / 'out', Path(folder) / 'err'
        request = dict(tool=tool, args=args, cwd=str(cwd), env=env, out=str(out), err=str(err), timeout=timeout)
        code = _ask(request)
        texts = [file.read_text(encoding='utf8', errors='replace') for file in (out, err)]
    if code is None:
        raise subprocess.TimeoutExpired([tool, *args], timeout, *texts)
    return _checked(subprocess.CompletedProcess([tool, *args], code, *texts), check)


def _checked(result, check):
    if check and result.returncode:
        name = next(arg for arg in result.args if arg.endswith('.py'))
        raise AssertionError(f'{name} exited {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}')
    return result


@functools.cache
def _tool_server():
    process = subprocess.Popen(
        [sys.executable, '-u', str(ROOT / 'tests' / 'tool_server.py')],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    atexit.register(process.kill)
    return process


def _ask(request):
    server = _tool_server()
    server.stdin.write(json.dumps(request) + '\n')
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def build(cfg):
    """The network of a config, without pretrained weights."""
    from mmengine.registry import MODELS

    init_default_scope(cfg.get('default_scope', 'mmdet'))
    return MODELS.build(cfg.model)


def relative_error(result, expected):
    scale = expected.detach().abs().max().clamp_min(1e-30)
    return float((result.detach() - expected.detach()).abs().max() / scale)


@pytest.fixture(autouse=True)
def _as_in_a_fresh_process():
    """The same random numbers, and neither default scope nor visualizer (with its folder) left by a test before."""
    torch.manual_seed(0)
    for kind in (DefaultScope, Visualizer, *Visualizer.__subclasses__()):
        kind._instance_dict.clear()


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """A VOC-layout data set of 16 + 8 + 8 pictures of generated shapes."""
    root = tmp_path_factory.mktemp('shapes') / 'VOCdevkit'
    run_tool(
        'benchmarks/datasets/compose_shapes.py',
        '--out',
        root,
        '--seed',
        0,
        '--train',
        16,
        '--val',
        8,
        '--test',
        8,
        '--size',
        96,
    )
    return root


@pytest.fixture(scope='session')
def tiny_config(shapes, tmp_path_factory):
    """Path of a config like the demo's baseline, on the tiny data set: 8 epochs of 4 steps, 96 pixels."""
    path = tmp_path_factory.mktemp('configs') / 'tiny.py'
    cfg = Config.fromfile(ROOT / 'benchmarks' / 'demo' / 'configs' / 'ssd96_r18_shapes.py')
    cfg.model.backbone.base_channels = 8
    cfg.model.neck.update(in_channels=(16, 32, 64), out_channels=(32,), min_channels=16)
    cfg.model.bbox_head.in_channels = (16, 32, 64, 32)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(shapes) + '/'
    cfg.train_cfg.update(max_epochs=8, val_interval=8)
    cfg.param_scheduler[1].update(end=8, milestones=[5, 7])
    cfg.param_scheduler[0].update(end=4)
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=-1, save_best='pascal_voc/mAP', rule='greater')
    cfg.default_hooks.logger.interval = 1
    cfg.dump(path)
    return path


@pytest.fixture(scope='session')
def tiny_baseline(tiny_config, tmp_path_factory):
    """A checkpoint of the tiny config, trained for one epoch through tools/train.py."""
    work_dir = tmp_path_factory.mktemp('baseline')
    run_tool(
        'train.py',
        tiny_config,
        '--work-dir',
        work_dir,
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
    )
    return work_dir / 'epoch_1.pth'


@pytest.fixture(scope='session')
def tiny_upgrade(tiny_config, tiny_baseline):
    """Path of the config that tools/upgrade.py writes for the tiny baseline: 2 epochs."""
    out = tiny_config.with_name('tiny_upgrade.py')
    run_tool('upgrade.py', tiny_config, tiny_baseline, '--out', out)
    return out


@pytest.fixture
def tiny_upgrade_cfg(tiny_upgrade, tmp_path):
    cfg = Config.fromfile(tiny_upgrade)
    cfg.work_dir = str(tmp_path / 'work')
    return cfg
