# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Reproducibility, honest splits, provenance, and refusals that leave nothing behind."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.datasets import SceneOptions, compose_cutouts, compose_shapes
from benchmarks.datasets import compose as compose_module
from benchmarks.datasets.splits import split_files
from mmdeform_upgrade.errors import DataError, UpgradeError

FEW = {'train': 2, 'val': 1, 'test': 1}
TINY = SceneOptions(size=48)


def content(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def test_same_seed_gives_the_same_bytes(tmp_path, material):
    for name in ('first', 'second'):
        compose_shapes(tmp_path / f'shapes-{name}', **FEW, size=48, seed=7)
        compose_cutouts(
            tmp_path / f'cutouts-{name}',
            material.cutouts,
            material.backgrounds,
            distractors=material.distractors,
            **FEW,
            seed=7,
            options=TINY,
        )
    for kind in ('shapes', 'cutouts'):
        first = content(tmp_path / f'{kind}-first')
        assert first == content(tmp_path / f'{kind}-second')
        assert len(first) > 20


def test_another_seed_gives_other_pictures_and_another_split(tmp_path, material):
    metas = [
        compose_cutouts(
            tmp_path / str(seed),
            material.cutouts,
            material.backgrounds,
            **FEW,
            seed=seed,
            options=TINY,
        )
        for seed in (0, 1)
    ]
    splits = [meta['plan']['sources']['splits'] for meta in metas]
    assert splits[0] != splits[1]
    picture = 'VOC2007/JPEGImages/000001.jpg'
    assert (tmp_path / '0' / picture).read_bytes() != (tmp_path / '1' / picture).read_bytes()


def test_splits_share_no_material_and_use_all_of_it(cutouts):
    splits = json.loads((cutouts / 'meta.json').read_text())['plan']['sources']['splits']
    totals = {'star': 5, 'ring': 5, 'backgrounds': 4, 'distractors': 3}
    for kind, total in totals.items():
        parts = [p[kind] if kind in p else p['cutouts'][kind] for p in splits.values()]
        assert all(parts)
        names = [name for part in parts for name in part]
        assert len(names) == len(set(names)) == total


def test_pictures_of_one_group_share_a_split():
    files = [Path(f'{group}__{view}.png') for group in 'abcdef' for view in range(4)]
    for seed in range(5):
        split = split_files(files, (0.6, 0.2, 0.2), [seed], 'test')
        groups = {name: {p.name[0] for p in paths} for name, paths in split.items()}
        assert sum(len(g) for g in groups.values()) == len(set.union(*groups.values())) == 6
        assert {name: len(g) for name, g in groups.items()} == {'train': 4, 'val': 1, 'test': 1}


@pytest.mark.parametrize('count', [3, 4, 5, 8, 11, 50])
def test_split_shares_are_kept_as_far_as_they_can_be(count):
    files = [Path(f'{i}.png') for i in range(count)]
    split = split_files(files, (0.6, 0.2, 0.2), [0], 'test')
    for name, share in (('val', 0.2), ('test', 0.2)):
        assert abs(len(split[name]) - max(1, share * count)) <= 0.5
    assert sorted(p for paths in split.values() for p in paths) == sorted(files)


def test_composing_again_keeps_a_complete_set_and_refuses_another(tmp_path):
    out = tmp_path / 'set'
    meta = compose_shapes(out, **FEW, size=48)
    picture = out / 'VOC2007/JPEGImages/000001.jpg'
    written = picture.stat().st_mtime_ns
    assert compose_shapes(out, **FEW, size=48) == meta
    assert picture.stat().st_mtime_ns == written
    with pytest.raises(DataError, match='already exists with other content'):
        compose_shapes(out, **FEW, size=48, seed=1)
    picture.unlink()
    with pytest.raises(DataError, match='already exists with other content'):
        compose_shapes(out, **FEW, size=48)


def test_occupied_output_is_refused_and_left_alone(tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'precious.txt').write_text('mine')
    with pytest.raises(UpgradeError, match='already exists with other content'):
        compose_shapes(out, **FEW, size=48)
    assert [p.name for p in tmp_path.rglob('*')] == ['out', 'precious.txt']


def test_empty_output_folder_is_used(tmp_path):
    compose_shapes(tmp_path, **{'train': 1, 'val': 0, 'test': 0}, size=48)
    assert (tmp_path / 'meta.json').is_file()


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_interrupted_run_leaves_nothing(tmp_path, monkeypatch, error):
    class Breaking(compose_module.DatasetWriter):
        def finish(self):
            raise error('stop')

    monkeypatch.setattr(compose_module, 'DatasetWriter', Breaking)
    with pytest.raises(error, match='stop'):
        compose_shapes(tmp_path / 'deep' / 'out', **FEW, size=48)
    assert list(tmp_path.rglob('*')) in ([], [tmp_path / 'deep'])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'size': 8}, 'size is 8'),
        ({'train': -1}, 'picture counts'),
        ({'train': 0, 'val': 0, 'test': 0}, 'one positive'),
        ({'seed': -1}, 'seed is -1'),
        ({'options': SceneOptions(objects=(3, 1))}, 'objects is'),
        ({'options': SceneOptions(jpeg_quality=(0, 95))}, 'jpeg_quality is'),
        ({'options': SceneOptions(object_size=(0.2, 1.5))}, 'object_size is'),
        ({'options': SceneOptions(min_visible=0)}, 'min_visible is'),
        ({'options': SceneOptions(max_angle=200)}, 'max_angle is'),
        ({'options': SceneOptions(warp_strength=1.5)}, 'warp_strength is'),
        ({'options': SceneOptions(border=-1)}, 'border is'),
    ],
)
def test_options_out_of_range_are_named(tmp_path, arguments, message):
    with pytest.raises(DataError, match=message):
        compose_shapes(tmp_path / 'out', **arguments)
    assert list(tmp_path.iterdir()) == []


def compose_from(material, out, **arguments):
    compose_cutouts(out, material.cutouts, material.backgrounds, **FEW, options=TINY, **arguments)


def opaque(path):
    cv2.imwrite(str(path), np.dstack([np.zeros((9, 9, 3), np.uint8), np.full((9, 9), 255)]))


def no_alpha(path):
    cv2.imwrite(str(path), np.zeros((9, 9, 3), np.uint8))


def invisible(path):
    cv2.imwrite(str(path), np.zeros((9, 9, 4), np.uint8))


def broken(path):
    path.write_bytes(b'not a picture')


@pytest.mark.parametrize(
    ('write', 'message'),
    [
        (no_alpha, 'has no alpha channel'),
        (opaque, 'is opaque everywhere'),
        (invisible, 'shows nothing'),
        (broken, 'cannot be read as a picture'),
    ],
)
def test_bad_cutout_is_named_and_nothing_written(tmp_path, material, write, message):
    write(material.cutouts / 'star' / 'bad.png')
    write(material.cutouts / 'ring' / 'worse.png')
    with pytest.raises(DataError, match=f'(?s)worse.png {message}.*bad.png {message}'):
        compose_from(material, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_broken_background_is_named(tmp_path, material):
    broken(material.backgrounds / 'bad.jpg')
    with pytest.raises(DataError, match='cannot be read as a picture'):
        compose_from(material, tmp_path / 'out')


def test_copies_are_refused(tmp_path, material):
    star = material.cutouts / 'star' / '0.png'
    (material.cutouts / 'ring' / 'copy.png').write_bytes(star.read_bytes())
    with pytest.raises(DataError, match='is a copy of'):
        compose_from(material, tmp_path / 'out')


def test_class_too_small_for_three_splits_is_named(tmp_path, material):
    (material.cutouts / 'rare').mkdir()
    for i in range(2):
        picture = np.random.default_rng(i).integers(0, 256, (9, 9, 4), dtype=np.uint8)
        cv2.imwrite(str(material.cutouts / 'rare' / f'{i}.png'), picture)
    with pytest.raises(DataError, match='class "rare": 2 files in 2 groups are too few'):
        compose_from(material, tmp_path / 'out')


def test_empty_and_missing_folders_are_named(tmp_path, material):
    (material.cutouts / 'nothing').mkdir()
    with pytest.raises(DataError, match='no PNGs in class folders nothing'):
        compose_from(material, tmp_path / 'out')
    (material.cutouts / 'nothing').rmdir()
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='holds no class folders'):
        compose_cutouts(tmp_path / 'out', tmp_path / 'empty', material.backgrounds)
    with pytest.raises(DataError, match='holds no pictures'):
        compose_cutouts(tmp_path / 'out', material.cutouts, tmp_path / 'empty')
    with pytest.raises(DataError, match='is not a folder that exists'):
        compose_cutouts(tmp_path / 'out', tmp_path / 'missing', material.backgrounds)


def test_split_shares_are_checked(tmp_path, material):
    with pytest.raises(DataError, match='three positive shares'):
        compose_from(material, tmp_path / 'out', split=(1, 0, 0))
