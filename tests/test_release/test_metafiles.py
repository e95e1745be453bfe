"""Metafiles: every config once, measured and published numbers apart, and MMEngine's and MIM's readers accept them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ..conftest import ROOT

INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
FILES = {name: yaml.safe_load((ROOT / name).read_text()) for name in INDEX}
MODELS = [model for file in FILES.values() for model in file['Models']]


def test_every_config_has_one_entry_in_its_folder():
    leaves = sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts
    )
    assert sorted(model['Config'] for model in MODELS) == leaves
    names = [model['Name'] for model in MODELS]
    assert len(set(names)) == len(names)
    assert sorted(INDEX) == sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('metafile.yml'))
    for name, file in FILES.items():
        collections = {collection['Name'] for collection in file['Collections']}
        for model in file['Models']:
            assert model['In Collection'] in collections and Path(model['Config']).stem == model['Name']
            assert Path(model['Config']).parent in (Path(name).parent, Path('configs'))


def test_results_are_those_that_this_project_measured():
    documents = ''.join(path.read_text() for path in (ROOT / 'docs' / 'results').glob('*.md'))
    measured = {}
    for model in MODELS:
        assert not (model.get('Results') and model.get('Published')), model['Name']
        for result in model.get('Results', ()):
            (value,) = result['Metrics'].values()
            assert f'{value:.2f}' in documents, model['Name']
            measured.setdefault(model['Name'], []).append(value)
    assert measured == {
        'ssd512_r50_24e_cutouts': [54.79],
        'ssd512_r50_24e_cutouts-nowarp': [59.00],
        'ssd256_r50_12e_cutouts': [33.59],
        'ssd256_r50_12e_cutouts-nowarp': [37.49],
        'deeplabv3_r50-d16_cutouts': [19.53],
        'faster-rcnn_r50-caffe-dc5_12e_cutouts': [36.42],
        'ssd320_r50_cutouts': [42.62],
        'ssd320_r50_cutouts-upgrade': [44.59],
        'ssd320_r50_cutouts-control': [44.57],
        'ssd96_r18_shapes': [62.43, 64.44, 64.72],
    }


# The configs themselves say what was published for them, in their first comment.
@pytest.mark.parametrize('model', [m for m in MODELS if m.get('Published')], ids=lambda m: m['Name'])
def test_published_numbers_are_those_that_the_config_names(model):
    text = (ROOT / model['Config']).read_text()
    for row in model['Published']:
        assert set(row) == {'Source', 'Metric', 'Value'}
        assert re.search(rf'(?<![\d.]){row["Value"]:.1f}(?!\d)', text), row


def test_published_numbers_are_complete():
    values = [row['Value'] for model in MODELS for row in model.get('Published', ())]
    expected = [
        80.1,
        79.3,
        81.5,
        30.6,
        50.0,
        32.2,
        33.6,
        54.1,
        35.8,
        36.0,
        57.2,
        38.7,
        37.0,
        58.2,
        40.1,
        80.1,
        80.9,
        81.0,
        69.7,
        73.9,
        74.8,
        75.2,
        74.8,
        78.1,
        78.6,
        78.5,
        78.6,
        78.7,
    ]
    assert sorted(values) == sorted(expected)


def test_mims_own_reader_takes_the_index():
    pytest.importorskip('modelindex', reason='needs the extra [dev]')
    from modelindex.load_model_index import load

    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    read = {model.name: model for model in index.models}
    collections = {collection['Name']: collection for file in FILES.values() for collection in file['Collections']}
    assert sorted(read) == sorted(model['Name'] for model in MODELS)
    for model in MODELS:
        given = read[model['Name']]
        assert given.config == model['Config']
        assert given.metadata.data['Training Data'] == model['Metadata']['Training Data']
        assert [result.metrics for result in given.results or ()] == [r['Metrics'] for r in model.get('Results', ())]
        architecture = collections[model['In Collection']]['Metadata']['Architecture']
        assert given.full_model.metadata.data['Architecture'] == architecture


def test_mmengine_and_mim_find_the_configs(tmp_path):
    package = tmp_path / 'mmdeform_upgrade'
    (package / '.mim').mkdir(parents=True)
    for path in (ROOT / 'mmdeform_upgrade').iterdir():
        if path.name not in ('.mim', '__pycache__'):
            (package / path.name).symlink_to(path)
    for name in ('configs', 'tools', 'model-index.yml'):
        (package / '.mim' / name).symlink_to(ROOT / name)
    info = tmp_path / 'mmdeform_upgrade-0.1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: mmdeform_upgrade\nVersion: 0.1.0\n')
    (info / 'top_level.txt').write_text('mmdeform_upgrade\n')
    code = (
        'from mmengine.config.utils import _get_cfg_metainfo\n'
        "for name in ('ssd/ssd512_r50-upgrade_50e_voc0712.py', 'ssd512_upgrade.py'):\n"
        "    print(_get_cfg_metainfo('mmdeform_upgrade', name)['Metadata']['Epochs'])\n"
        'try:\n    from mim.commands.search import get_model_info\n'
        "except ImportError:\n    print('no mim')\n"
        "else:\n    print(len(get_model_info('mmdeform_upgrade')))\n"
    )
    result = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=False,
        env={'PYTHONPATH': str(tmp_path), 'PATH': ''},
        cwd=tmp_path,
    )
    lines = result.stdout.splitlines()
    assert lines[-3:-1] == ['50', '60'], result.stderr[-2000:]
    assert lines[-1] in ('no mim', str(len(MODELS)))
