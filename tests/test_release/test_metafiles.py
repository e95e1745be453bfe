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


# The configs themselves say what was published for them, in their first comment.
@pytest.mark.parametrize('model', [m for m in MODELS if m.get('Published')], ids=lambda m: m['Name'])
def test_published_numbers_are_those_that_the_config_names(model):
    text = (ROOT / model['Config']).read_text()
    for row in model['Published']:
        assert set(row) == {'Source', 'Metric', 'Value'}
        assert re.search(rf'(?<![\d.]){row["Value"]}(?!\d)', text), row


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
