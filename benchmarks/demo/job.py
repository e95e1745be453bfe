# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The main job from end to end on generated data: train, upgrade, fine-tune, and the control, measured and shown."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Tuple

from mmdeform_upgrade.errors import UpgradeError
from mmdeform_upgrade.schedule import Length

from ..tool_runs import ROOT, read_curve, read_test_score, run_tool

METRIC = 'pascal_voc/mAP'
BASELINE_CONFIG = 'benchmarks/demo/configs/ssd96_r18_shapes.py'


@dataclass(frozen=True)
class Sizes:
    """How much the demo does; the defaults take some ten minutes on two cores."""

    train: int = 1200
    val: int = 200
    test: int = 300
    epochs: int = 24
    batch: int = 16


@dataclass(frozen=True)
class Results:
    """What the demo measured: ``rows`` of the table and the validation curves."""

    rows: List[Tuple[str, str, float]]
    curves: Dict[str, List[Tuple[float, float]]]
    minutes: float


def run(out: Path, sizes: Sizes = Sizes(), seed: int = 0) -> Results:
    """Compose the data, train the baseline, upgrade it, fine-tune it and the control, score all of them.

    Args:
        out: folder for everything; it must not exist or be empty.
        sizes: how much to do.
        seed: of data and training.

    Raises:
        UpgradeError: ``out`` holds something, or a step failed.
    """
    if out.exists() and any(out.iterdir()):
        raise UpgradeError(f'{out} is not empty: name another folder with --out, or remove it')
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    data, logs = out / 'VOCdevkit', out / 'logs'
    logs.mkdir()
    run_tool(
        'benchmarks/datasets/compose_shapes.py',
        '--out',
        data,
        '--seed',
        seed,
        '--size',
        96,
        '--train',
        sizes.train,
        '--val',
        sizes.val,
        '--test',
        sizes.test,
        title='compose deformable shapes',
        log=logs / 'compose.txt',
    )
    configs = {name: out / f'{name}.py' for name in ('baseline', 'upgraded', 'control')}
    configs['baseline'].write_text(_baseline_text(data, sizes, seed), encoding='utf8')
    checkpoint = out / 'baseline' / f'epoch_{sizes.epochs}.pth'
    _train(configs['baseline'], sizes.epochs, 'train the baseline')
    print(
        run_tool(
            'upgrade.py',
            configs['baseline'],
            checkpoint,
            '--out',
            configs['upgraded'],
            '--control',
            configs['control'],
            title='upgrade it',
            log=logs / 'upgrade.txt',
        )
    )
    quarter = _epochs(configs['upgraded'])
    before = {name: _test(configs[name], checkpoint, f'{name}, untouched') for name in ('baseline', 'upgraded')}
    _train(configs['upgraded'], quarter, 'fine-tune the upgrade')
    _train(configs['control'], quarter, 'control: no upgrade')
    after = {
        name: _test(configs[name], out / name / f'epoch_{quarter}.pth', f'{name}, fine-tuned')
        for name in ('upgraded', 'control')
    }
    rows = [
        ('baseline', str(sizes.epochs), before['baseline']),
        ('upgraded, before its first step', str(sizes.epochs), before['upgraded']),
        ('upgraded, fine-tuned', f'{sizes.epochs} + {quarter}', after['upgraded']),
        ('control: trained on, not upgraded', f'{sizes.epochs} + {quarter}', after['control']),
    ]
    return Results(rows, _curves(out, sizes.epochs), (time.monotonic() - start) / 60)


def look(out: Path, count: int, epochs: int) -> Tuple[List[Any], Dict[str, List[List[Any]]], Tuple[str, ...]]:
    """Test pictures, and what the truth and every network say on them, as ``plots.draw_detections`` wants it."""
    import mmcv
    from mmdet.apis import inference_detector, init_detector
    from mmengine.config import Config
    from mmengine.registry import DATASETS, init_default_scope

    init_default_scope('mmdet')
    quarter = _epochs(out / 'upgraded.py')
    cfg = Config.fromfile(out / 'baseline.py')
    dataset = DATASETS.build({**cfg.test_dataloader.dataset, 'pipeline': []})
    classes = dataset.metainfo['classes']
    files = [dataset.get_data_info(i) for i in range(min(count, len(dataset)))]
    truth = [[(classes[box['bbox_label']], float('nan'), box['bbox']) for box in info['instances']] for info in files]
    columns: Dict[str, List[List[Any]]] = {'truth': truth}
    for name, epoch in (('baseline', epochs), ('upgraded', quarter), ('control', quarter)):
        model = init_detector(str(out / f'{name}.py'), str(out / name / f'epoch_{epoch}.pth'), device='cpu')
        columns[name] = [_boxes(inference_detector(model, info['img_path']).pred_instances, classes) for info in files]
    return [mmcv.imread(info['img_path'], channel_order='rgb') for info in files], columns, classes


def _boxes(found: Any, classes: Tuple[str, ...], threshold: float = 0.3) -> List[Any]:
    found = found[found.scores > threshold].numpy()
    boxes = [
        (classes[label], float(score), box)
        for label, score, box in zip(found.labels, found.scores, found.bboxes, strict=True)
    ]
    return sorted(boxes, key=lambda box: box[1])  # the surest is drawn last, on top


def _baseline_text(data: Path, sizes: Sizes, seed: int) -> str:
    base = ROOT / BASELINE_CONFIG
    loaders = ''.join(
        f'{split}_dataloader = dict(batch_size={sizes.batch}, dataset=dict(data_root={str(data)!r}))\n'
        for split in ('train', 'val', 'test')
    )
    text = f'_base_ = [{str(base)!r}]\n{loaders}randomness = dict(seed={seed})\n'
    if sizes.epochs != Sizes.epochs:
        end, decays = sizes.epochs, [max(1, sizes.epochs * 2 // 3), max(2, sizes.epochs * 5 // 6)]
        text += (
            f'train_cfg = dict(max_epochs={end})\n'
            "param_scheduler = [dict(type='MultiStepLR', by_epoch=True, begin=0, "
            f'end={end}, milestones={decays}, gamma=0.1)]\n'
        )
    return text


def _epochs(config: Path) -> int:
    from mmengine.config import Config

    return int(Config.fromfile(config).train_cfg.max_epochs)


def _train(config: Path, epochs: int, title: str) -> None:
    work_dir = config.with_suffix('')
    run_tool(
        'train.py',
        config,
        '--work-dir',
        work_dir,
        title=title,
        length=Length(epochs, 'epochs'),
        log=config.parent / 'logs' / f'{config.stem}.txt',
    )


def _test(config: Path, checkpoint: Path, title: str) -> float:
    work_dir = config.parent / 'tests' / _folder_name(title)
    run_tool(
        'test.py',
        config,
        checkpoint,
        '--work-dir',
        work_dir,
        title=f'test: {title}',
        log=config.parent / 'logs' / f'test-{work_dir.name}.txt',
    )
    return read_test_score(work_dir, METRIC)


def _folder_name(title: str) -> str:
    """A title as a folder's name."""
    return ''.join(letter if letter.isalnum() else '-' for letter in title)


def _curves(out: Path, epochs: int) -> Dict[str, List[Tuple[float, float]]]:
    curves: Dict[str, List[Tuple[float, float]]] = {
        'baseline': [(float(epoch), score) for epoch, score in read_curve(out / 'baseline', METRIC)]
    }
    for name in ('upgraded', 'control'):
        points = [(float(epochs + epoch), score) for epoch, score in read_curve(out / name, METRIC)]
        curves[name] = [curves['baseline'][-1], *(point for point in points if point[0] > epochs)]
    return curves
