"""Every command of docs/releases.md runs."""

import re
import runpy
import shlex

import pytest

from ..conftest import ROOT

PAGE = (ROOT / 'docs' / 'releases.md').read_text(encoding='utf8')
COMMANDS = re.findall(r'^python tools/(?!deployment)(.*)$', PAGE, re.M)  # test_onnx.py exports


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('page')


# In the page's order, in one folder, as a reader would.
@pytest.mark.parametrize('command', COMMANDS)
def test_a_command_of_the_page_runs(command, files, folder, monkeypatch, capsys):
    given = {'CHECKPOINT': files.checkpoint, 'BASELINE': files.baseline, 'CONFIG': files.config}
    name, *arguments = (given.get(word, word) for word in shlex.split(command))
    monkeypatch.chdir(folder)
    main = runpy.run_path(str(ROOT / 'tools' / name))['main']
    if '--inspect' in command:
        with pytest.raises(SystemExit, match='None|0'):
            main(arguments)
        assert 'an upgrade of 3 layers' in capsys.readouterr().out
        return
    main([*arguments, '--num', '1'] if name.endswith('revert.py') else arguments)
    assert 'written: ' in capsys.readouterr().out
