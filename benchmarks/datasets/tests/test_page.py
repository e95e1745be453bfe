# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The data page's commands of cut-outs, as they stand, on a tree like the Debian packages' with generated pictures."""

import re
import runpy
import shlex
from pathlib import Path

import cv2
import numpy as np

from benchmarks.datasets import debian

from .conftest import write_cutout

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / 'docs' / 'data.md').read_text(encoding='utf8').replace('\\\n', ' ')
COMMANDS = re.findall(r'^ +python (benchmarks/datasets/c\w+_cutouts\.py .*data/debian.*)$', PAGE, re.M)
SMALL = ['--train', '3', '--val', '2', '--test', '2', '--size', '96']


def write_packages(root):
    rng = np.random.default_rng(0)
    for folders in (*debian._CLASSES.values(), debian._DISTRACTORS):
        for i in range(5):
            write_cutout(root / 'stamps' / folders[0] / f'thing{i}.png', rng)
    for pattern, names in debian._PHOTOS.items():
        for name in names:
            path = root / 'share' / pattern.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 256, (90, 130, 3), dtype=np.uint8))


def test_the_cut_outs_of_the_page_are_collected_and_composed(tmp_path, monkeypatch, capsys):
    write_packages(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert [re.search(r'\w+\.py', command).group() for command in COMMANDS] == [
        'collect_debian_cutouts.py',
        'compose_cutouts.py',
    ]
    extra = {'collect': ['--stamps', 'stamps', '--share', 'share'], 'compose': SMALL}
    for command in COMMANDS:
        tool, *arguments = shlex.split(command)
        main = runpy.run_path(str(ROOT / tool))['main']
        main(arguments + extra[Path(tool).name.partition('_')[0]])
    said = capsys.readouterr().out
    assert 'bird: 5' in said and 'backgrounds: 23' in said and 'train: 3 pictures' in said
    composed = tmp_path / 'data/composite/VOCdevkit'
    assert len(list((composed / 'VOC2007/JPEGImages').iterdir())) == 7
