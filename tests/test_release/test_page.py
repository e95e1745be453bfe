"""Every command of docs/releases.md runs."""
import re
import shlex

import pytest

from ..conftest import ROOT, run_tool

PAGE = (ROOT / 'docs' / 'releases.md').read_text(encoding='utf8')
COMMANDS = re.findall(r'^python tools/(.*)$', PAGE, re.M)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('page')


# In the page's order, in one folder, as a reader would.
@pytest.mark.parametrize('command', COMMANDS)
def test_a_command_of_the_page_runs(command, files, folder):
    given = {'CHECKPOINT': files.checkpoint, 'BASELINE': files.baseline, 'CONFIG': files.config}
    name, *arguments = (given.get(word, word) for word in shlex.split(command))
    if name.endswith('revert.py'):
        arguments += ['--num', '1', '--force']
    out = run_tool(name, *arguments, cwd=folder).stdout
    assert 'written: ' in out or '--inspect' in command


def test_the_page_names_every_tool_and_its_links_exist():
    for tool in ('publish_model', 'delta.py make', 'delta.py apply', 'revert', 'upgrade.py --inspect'):
        assert any(tool in command for command in COMMANDS), tool
    for target in re.findall(r'\]\(([^)]+)\)', PAGE):
        assert (ROOT / 'docs' / target).exists(), target
