# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Selecting cut-outs from Debian packages: the filters, and the packages where installed."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import collect_debian_cutouts, compose_cutouts, debian
from benchmarks.datasets.files import read_rgba
from benchmarks.datasets.shapes import shape_mask
from mmdeform_upgrade.errors import DataError


def installed():
    photos = (debian.BACKGROUNDS / p.format(names[0]) for p, names in debian._PHOTOS.items())
    return debian.STAMPS.is_dir() and all(path.is_file() for path in photos)


needs_packages = pytest.mark.skipif(
    not installed(),
    reason='tuxpaint-stamps-default, mate-backgrounds, plasma-workspace-wallpapers and '
    'lomiri-wallpapers-16.04 are not all installed',
)


def stamp(path, color=None, alpha=None, side=60):
    rng = np.random.default_rng(len(str(path)))
    if color is None:
        color = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    if alpha is None:
        alpha = shape_mask('star', rng, 60)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.dstack([color, alpha]))


def palette_stamp(path):
    side = np.arange(60 * 60).reshape(60, 60)
    picture = Image.fromarray((side % 250 + 1).astype(np.uint8))
    picture.putpalette([value for i in range(256) for value in (i, 255 - i, (7 * i) % 256)])
    picture.putpixel((0, 0), 0)
    picture.save(path, transparency=0)


@pytest.fixture
def stamps(tmp_path):
    root = tmp_path / 'stamps'
    flat = np.full((60, 60, 3), 90, np.uint8)
    stamp(root / 'animals/birds/good.png')
    stamp(root / 'animals/birds/silhouette.png', color=flat)
    stamp(root / 'animals/birds/good_mirror.png')
    stamp(root / 'animals/birds/cartoon/tux.png')
    stamp(root / 'animals/birds/thin.png', side=150, alpha=np.tile([0] * 146 + [255] * 4, (150, 1)))
    stamp(root / 'animals/birds/faint.png', alpha=np.tile([100] * 50 + [255] * 10, (60, 1)))
    stamp(root / 'animals/birds/square.png', alpha=np.tile([0] + [255] * 59, (60, 1)))
    stamp(root / 'animals/fish/lobster.png')
    return root


def test_filters_keep_photos_and_say_why_others_are_dropped(stamps):
    dropped = {}
    kept = debian._selected(stamps, ['animals/birds', 'animals/fish'], dropped)
    assert [path.stem for path in kept] == ['good']
    assert dropped == {
        'animals/birds/cartoon/tux': 'cartoon',
        'animals/birds/faint': 'nearly transparent',
        'animals/birds/good_mirror': 'mirrored copy',
        'animals/birds/silhouette': '1 colours: a drawing or a silhouette',
        'animals/birds/square': 'opaque square',
        'animals/birds/thin': 'nearly transparent',
        'animals/fish/lobster': 'not a fish',
    }


def test_photo_with_a_palette_is_kept(stamps):
    palette_stamp(stamps / 'animals/fish/reduced.png')
    dropped = {}
    debian._selected(stamps, ['animals/fish'], dropped)
    assert dropped['animals/fish/reduced'] == 'opaque square'  # so its colours sufficed


def test_missing_package_is_named(tmp_path, stamps):
    with pytest.raises(DataError, match='Install tuxpaint-stamps-default'):
        collect_debian_cutouts(tmp_path / 'out', stamps=tmp_path / 'none')
    with pytest.raises(DataError, match='Install mate-backgrounds'):
        collect_debian_cutouts(tmp_path / 'out', stamps=stamps, share=tmp_path / 'none')
    assert not (tmp_path / 'out').exists()


@pytest.fixture(scope='module')
def collected(tmp_path_factory):
    out = tmp_path_factory.mktemp('debian') / 'collected'
    return out, collect_debian_cutouts(out)


@needs_packages
def test_every_class_has_enough_photos(collected):
    out, result = collected
    counts = dict(result['counts'])
    assert counts.pop('backgrounds') == 23
    assert counts.pop('distractors') > 40
    assert set(counts) == {p.name for p in (out / 'cutouts').iterdir()}
    assert 6 <= len(counts) <= 8
    assert min(counts.values()) >= 8
    assert sum(counts.values()) > 150


@needs_packages
def test_nothing_collected_is_a_cartoon_or_without_alpha(collected):
    out, _ = collected
    for path in (out / 'cutouts').rglob('*.png'):
        assert 'cartoon' not in path.name
        assert 'mirror' not in path.name
        assert read_rgba(path)[..., 3].min() < 128


@needs_packages
def test_tables_name_files_that_exist():
    names = [name for folders in debian._CLASSES.values() for name in folders]
    missing = [n for n in [*names, *debian._DISTRACTORS] if not (debian.STAMPS / n).is_dir()]
    stamps = [Path(f'{debian.STAMPS / name}.png') for name in debian._UNWANTED]
    assert missing + [str(path) for path in stamps if not path.is_file()] == []


@needs_packages
def test_collected_material_composes_with_disjoint_splits(collected, tmp_path):
    out, result = collected
    meta = compose_cutouts(
        tmp_path / 'set',
        out / 'cutouts',
        out / 'backgrounds',
        distractors=out / 'distractors',
        **{'train': 2, 'val': 1, 'test': 1},
    )
    parts = meta['plan']['sources']['splits'].values()
    for name in meta['plan']['classes']:
        groups = [{file.split('__')[0] for file in part['cutouts'][name]} for part in parts]
        assert all(groups)
        assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
        assert sum(len(part['cutouts'][name]) for part in parts) == result['counts'][name]
